"""Reads bodies with lists of token ids, without creating an object for each of up to a million."""

import secrets
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from baton.errors import InvalidRequest
from baton.native import id_text, json_fields
from baton.native.json_fields import Field
from router.http.exchange import Exchange
from router.openai.body import decode

_LONG_BYTES = 4096  # shorter bodies are decoded as they are
_MANY_IDS = 2**15  # decoding so many takes a millisecond
_STAND_IN = secrets.token_hex(16)  # replaces ids that have been taken; random, so that no client can send it
_read, _find = id_text.load(), json_fields.load()
Body = TypeVar("Body", bound=msgspec.Struct)
Check = Callable[[bytes], Sequence[Field] | None]
"""Raises an error for a body that must not be decoded. Returns its fields, if it has found them."""


class _Taken(NamedTuple):
    """A body without its ids, and these."""

    body: bytes
    ids: id_text.Ids


class Reader(Generic[Body]):
    """Reads the bodies of one endpoint, of which one field may be token ids, or lists of them.

    Those of long bodies are read by compiled code, if it is installed, and become arrays.
    """

    def __init__(self, kind: type[Body], name: str, vocab_size: int) -> None:
        """`name`: the field's. All ids must be below `vocab_size`, if that is known."""
        self._decoder = msgspec.json.Decoder(kind)
        self._name = name
        self._limit = vocab_size or 2**31

    async def read(self, exchange: Exchange, check: Check) -> Body:
        """Read and decode the body that passes `check`. Raises what `Exchange.read_body` raises, and InvalidRequest.

        The ids of a large one are read where it is checked: in a thread, without the GIL, and before its turn.
        """
        taken: _Taken | None = None

        def check_and_take(data: bytes) -> None:
            nonlocal taken
            taken = self._take(data, check(data))

        data = await exchange.read_body(check_and_take)
        return self._with(taken, data)

    def decode(self, data: bytes) -> Body:
        """Decode a body at once. Raises InvalidRequest."""
        return self._with(self._take(data, None), data)

    def _take(self, data: bytes, fields: Sequence[Field] | None) -> _Taken | None:
        """Take the ids from a body; None if there are none, or they are left to the decoder. Raises InvalidRequest.

        `fields`: those of the body, if they are known.
        """
        if _read is None or _find is None or len(data) <= _LONG_BYTES:
            return None
        name = self._name.encode()
        named = [field for field in fields or _find(data) or () if field.name == name]
        if len(named) != 1 or not named[0].num_containers:
            return None
        start, num_commas = named[0].start, named[0].num_commas
        found = _read(data, start, self._limit, num_commas + 1)
        if found is None and num_commas > _MANY_IDS:  # texts, which are also left to the decoder, are not so many
            raise InvalidRequest(f"Expected token ids below {self._limit}, or lists of them", param=self._name)
        if found is None:
            return None
        ids, end = found
        return _Taken(b'%b"%b"%b' % (data[:start], _STAND_IN.encode(), data[end:]), ids)

    def _with(self, taken: _Taken | None, data: bytes) -> Body:
        if taken is not None:
            body = decode(self._decoder, taken.body, whole=False)
            if getattr(body, self._name) == _STAND_IN:  # otherwise the field occurs again, spelled with escapes
                ids: Any = taken.ids
                return msgspec.structs.replace(body, **{self._name: ids})
        return decode(self._decoder, data)
