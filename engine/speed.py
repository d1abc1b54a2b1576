"""How fast a node has been lately, from which routers predict times."""

from baton.step_cost import StepFit, StepShape

_SMOOTHING = 0.1  # weight of the latest step


class Speed:
    """Exponential moving averages over steps; 0 is unknown."""

    def __init__(self) -> None:
        self.step_s = 0.0
        self.prefill_tokens_per_s = 0.0
        self.fit = StepFit()

    def note(self, shape: StepShape, duration_s: float) -> None:
        """Record a step. One made mostly of prompt tokens also counts for the speed of prefill."""
        num_tokens = shape.num_prompt_tokens + shape.num_decoding
        self.fit.note(shape, 1000 * duration_s)
        self.step_s = _mean(self.step_s, duration_s)
        if shape.num_prompt_tokens > shape.num_decoding and duration_s > 0:
            self.prefill_tokens_per_s = _mean(self.prefill_tokens_per_s, num_tokens / duration_s)


def _mean(before: float, latest: float) -> float:
    return before + _SMOOTHING * (latest - before) if before else latest
