"""How many positions each layer's tokens see, themselves included; 0 is all. One function per habit of config.json."""

from engine.model.fields import Fields


def one_window(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """The same in all layers."""
    return (fields.optional_count("sliding_window"),) * num_layers


def asked_window(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """The same in all layers, where use_sliding_window is set."""
    return (fields.optional_count("sliding_window") * fields.flag("use_sliding_window"),) * num_layers


def upper_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """Where asked for: in the upper layers, or in the layers that `layer_types` names."""
    is_asked, first = fields.flag("use_sliding_window"), fields.optional_count("max_window_layers")
    has_window = is_asked and bool(fields.optional_count("sliding_window"))
    windows = _typed_windows(fields, [has_window and layer >= first for layer in range(num_layers)])
    if any(windows) and not is_asked:
        fields.refuse("layer_types names sliding_attention, though use_sliding_window is not set")
    return windows


def alternating_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """In every other layer, the first among them, or in those that `layer_types` names."""
    return _typed_windows(fields, [layer % 2 == 0 for layer in range(num_layers)])


def patterned_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """In all layers but every n-th, or in those that `layer_types` names."""
    period = fields.count("sliding_window_pattern")
    return _typed_windows(fields, [(layer + 1) % period > 0 for layer in range(num_layers)])


def _typed_windows(fields: Fields, default: list[bool]) -> tuple[int, ...]:
    kinds, num_layers = fields.strings("layer_types"), len(default)
    if kinds and (len(kinds) < num_layers or not {*kinds} <= {"sliding_attention", "full_attention"}):
        fields.refuse(f"layer_types {kinds} do not say of {num_layers} layers sliding_attention or full_attention")
    has_window = [kind == "sliding_attention" for kind in kinds[:num_layers]] or default
    window = fields.count("sliding_window") if any(has_window) else 0
    return tuple(window * has_one for has_one in has_window)
