"""Block hashes of a request's tokens, to look up which nodes have how much of its prefix."""

from collections.abc import Sequence

from baton.kv.prefix_hash import BlockHash, block_hashes, packed_hashes, root_hash, stretched_root
from router.nodes.fleet_view import FleetFacts
from router.running import Running

_MANY_TOKENS = 2048  # beyond this, hashes stay packed: a lookup needs only a few of them as objects


class PromptHashes:
    """Block hashes of the tokens that an attempt starts with, computed once per model."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._fingerprint = ""
        self._hashes: Sequence[BlockHash] = []

    def of(self, facts: FleetFacts | None) -> Sequence[BlockHash]:
        """Return the hashes, in order, of the tokens at the time of the first call; later tokens are not included."""
        if facts is not None and facts.model_fingerprint != self._fingerprint:
            root, token_ids = root_hash(facts.model_fingerprint, self._running.job.cache_salt), self._running.token_ids
            if 0 < facts.stretches_after < len(token_ids):
                root = stretched_root(root)
            hashed = packed_hashes if len(token_ids) > _MANY_TOKENS else block_hashes
            self._hashes = hashed(token_ids, facts.block_size, root)
            self._fingerprint = facts.model_fingerprint
        return self._hashes
