"""Block hashes of a request's prompt, for looking up who holds how much of it."""

from collections.abc import Sequence

from baton.kv.prefix_hash import BlockHash, block_hashes, packed_hashes, root_hash, stretched_root
from router.nodes.fleet_view import FleetFacts
from router.running import Running

_MANY_TOKENS = 2048  # whose hashes take longer to make objects of than to look for some


class PromptHashes:
    """Block hashes of what an attempt begins with, computed once per model."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._fingerprint = ""
        self._hashes: Sequence[BlockHash] = []

    def of(self, facts: FleetFacts | None) -> Sequence[BlockHash]:
        """The hashes, in the order of the blocks. They are of the tokens so far, and not kept up with later ones."""
        if facts is not None and facts.model_fingerprint != self._fingerprint:
            root, token_ids = root_hash(facts.model_fingerprint, self._running.job.cache_salt), self._running.token_ids
            if 0 < facts.stretches_after < len(token_ids):
                root = stretched_root(root)
            hashed = packed_hashes if len(token_ids) > _MANY_TOKENS else block_hashes
            self._hashes = hashed(token_ids, facts.block_size, root)
            self._fingerprint = facts.model_fingerprint
        return self._hashes
