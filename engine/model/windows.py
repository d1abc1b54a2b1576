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
    first = fields.optional_count("max_window_layers")
    window = fields.optional_count("sliding_window") * fields.flag("use_sliding_window")
    return _typed_windows(fields, window, [layer >= first for layer in range(num_layers)])


def patterned_windows(fields: Fields, num_layers: int) -> tuple[int, ...]:
    """In all layers but every n-th, or in those that `layer_types` names."""
    period = fields.count("sliding_window_pattern")
    window = fields.optional_count("sliding_window")
    return _typed_windows(fields, window, [(layer + 1) % period > 0 for layer in range(num_layers)])


def _typed_windows(fields: Fields, window: int, default: list[bool]) -> tuple[int, ...]:
    kinds = fields.strings("layer_types")
    if not kinds:
        return tuple(window * has_one for has_one in default)
    if len(kinds) < len(default) or not {*kinds} <= {"sliding_attention", "full_attention"}:
        fields.refuse(f"layer_types {kinds} do not say of {len(default)} layers sliding_attention or full_attention")
    return tuple(window * (kind == "sliding_attention") for kind in kinds[: len(default)])
