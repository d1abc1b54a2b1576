import pytest

from baton.errors import Unauthenticated
from router.admin.auth import SESSION_S, AdminAuth, WrongHost
from router.http.auth import APIKeys


class Clock:
    now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def auth(clock):
    return AdminAuth("127.0.0.1", APIKeys(["sk-one"]), "token", clock)


@pytest.mark.parametrize("key", ["sk-one", "token"])
def test_an_api_key_or_the_service_token_opens(auth, key):
    auth.check(f"Bearer {key}", "", "anything:1")
    assert auth.knows(key)


@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer ", "Bearer sk-two", "Basic token", "Bearer tokeng"])
def test_nothing_else_does(auth, authorization):
    with pytest.raises(Unauthenticated):
        auth.check(authorization, "", "127.0.0.1")


def test_a_cookie_opens_until_it_is_old(auth, clock):
    cookie = auth.new_cookie()
    assert all(part in cookie for part in ("HttpOnly", "SameSite=Strict"))
    pair = cookie.partition(";")[0]
    auth.check("", f"other=1; {pair}", "127.0.0.1")
    clock.now += SESSION_S + 1
    with pytest.raises(Unauthenticated):
        auth.check("", pair, "127.0.0.1")


def test_a_cookie_cannot_be_made_up(auth, clock):
    name, _, value = auth.new_cookie().partition(";")[0].partition("=")
    until, _, signature = value.partition(".")
    other = AdminAuth("127.0.0.1", APIKeys(["sk-one"]), "token", clock).new_cookie().partition(";")[0]
    for forged in (f"{name}={int(until) + 9}.{signature}", f"{name}={until}.", f"{name}=٣.{signature}", name, other):
        with pytest.raises(Unauthenticated):
            auth.check("", forged, "127.0.0.1")


def test_without_keys_this_host_may_look_and_pages_from_elsewhere_may_not():
    auth = AdminAuth("127.0.0.1", APIKeys([]), "token")
    for host in ("127.0.0.1:8001", "localhost:8001", "localhost", "[::1]:8001"):
        auth.check("", "", host)
    for host in ("evil.example:8001", "127.0.0.1.evil.example", ""):
        with pytest.raises(WrongHost):
            auth.check("", "", host)


def test_beyond_loopback_the_token_is_wanted():
    auth = AdminAuth("0.0.0.0", APIKeys([]), "token")
    with pytest.raises(Unauthenticated):
        auth.check("", "", "127.0.0.1")
    auth.check("Bearer token", "", "10.0.0.1")
    assert not AdminAuth("0.0.0.0", APIKeys([]), "").knows("")
