"""The attention window of each layer: positions that a token sees, including its own; 0 is all.

There is one function for each convention that config.json files follow.
"""

from engine.model.fields import Fields


def one_window(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """The same window in all layers."""
    return (fields.optional_count("sliding_window"),) * num_layers


def asked_window(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """The same window in all layers, if use_sliding_window is set."""
    return (fields.optional_count("sliding_window") * fields.flag("use_sliding_window"),) * num_layers


def upper_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """If use_sliding_window is set: a window in the upper layers, or in those that `layer_types` names."""
    is_asked, first = fields.flag("use_sliding_window"), fields.optional_count("max_window_layers")
    has_window = is_asked and bool(fields.optional_count("sliding_window"))
    windows = _typed_windows(fields, [has_window and layer >= first for layer in range(num_layers)])
    if any(windows) and not is_asked:
        fields.refuse("layer_types names sliding_attention, though use_sliding_window is not set")
    return windows


def alternating_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """A window in every other layer from the first on, or in those that `layer_types` names."""
    return _typed_windows(fields, [layer % 2 == 0 for layer in range(num_layers)])


def patterned_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """A window in all layers but every n-th, or in those that `layer_types` names."""
    period = fields.count("sliding_window_pattern")
    return _typed_windows(fields, [(layer + 1) % period > 0 for layer in range(num_layers)])


def _typed_windows(fields: Fields, default: list[bool]) -> tuple[int, ...]:
    kinds, num_layers = fields.strings("layer_types"), len(default)
    if kinds and (len(kinds) < num_layers or not {*kinds} <= {"sliding_attention", "full_attention"}):
        fields.refuse(f"layer_types {kinds} must name sliding_attention or full_attention for {num_layers} layers")
    has_window = [kind == "sliding_attention" for kind in kinds[:num_layers]] or default
    window = fields.count("sliding_window") if any(has_window) else 0
    return tuple(window * has_one for has_one in has_window)
