"""Warns of tensors of a checkpoint that were not read: signs that config.json does not describe all of the model.

If biases or norms are left out, for example, the outputs are not those of the model that was trained. Not worth a
warning are tensors that can be computed from config.json, layers that only draft tokens, scales for quantising
activations or the cache, and biases of zeros, which some quantizers write.
"""

import logging
import re
from collections import Counter

from engine.model.checkpoint import Checkpoint
from engine.model.config import ModelConfig

_NO_LOSS = re.compile(r"\.rotary_emb\.\w+|\.weight_shape|\.(input|output|[qkv])_(scale|zero_point)")
_MOST_NAMED = 8

_log = logging.getLogger(__name__)


def warn(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Log the tensors that the model has not read, once it has read all that it needs; only those that matter."""
    left = [name for name in checkpoint.unread() if _matters(name, checkpoint, config)]
    kinds = Counter(re.sub(r"\d+", "*", name) for name in left)
    if kinds:
        named = ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common(_MOST_NAMED))
        more = f", and {len(kinds) - _MOST_NAMED} kinds more" if len(kinds) > _MOST_NAMED else ""
        _log.warning(
            "outputs may be wrong: %s, as config.json describes it, does not use %s%s", config.architecture, named, more
        )


def _matters(name: str, checkpoint: Checkpoint, config: ModelConfig) -> bool:
    layer = re.search(r"model\.layers\.(\d+)\.", name)
    if layer and 0 <= int(layer[1]) - config.num_layers < config.num_draft_layers:
        return False
    return not (_NO_LOSS.search(name) or (name.endswith(".bias") and checkpoint.is_zero(name)))
