import base64
import re
from hashlib import sha256

import pytest

from router.admin.pages import page


@pytest.mark.parametrize("name", ["dashboard", "login"])
def test_a_page_needs_nothing_from_outside_and_its_policy_allows_nothing_else(name):
    body, headers = page(name)
    text, policy = body.decode(), dict(headers)[b"content-security-policy"].decode()
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        blocks = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        assert len(blocks) == 1
        digest = base64.b64encode(sha256(blocks[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    addresses = set(re.findall(r"https?://[^\s\"'`)]+", text)) - {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert addresses == set()
    assert not re.search(r"""\sstyle=|\son[a-z]+=|innerHTML|src=|url\(""", text)
    assert "/*script*/" not in text
