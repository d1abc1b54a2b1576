"""A model of how long a node's steps take, in milliseconds. Nodes fit it to their steps; routers predict with it.

    a prefill step   base + token · tokens + context · Σ tokens · tokens before them
    a decode step    base + request · requests + token · Σ tokens before

The context term is there because a prompt token attends to all tokens before it, so the cost of long prompts grows
faster than their length. The fit is least squares with forgetting, so it follows a node whose machine gets busy. A
coefficient below zero would predict nonsense for some steps, so it counts as zero.
"""

from collections.abc import Sequence

import msgspec

from baton.v1 import types_pb2

_FORGETTING = 0.995  # factor on the weight of all earlier steps, per step
_LOOSE = 1e4  # initial variance of the coefficients, and its upper bound: unbounded, forgetting would amplify noise
_MAX_SURPRISE = 3.0  # an error counts up to this many times the prediction: the machine may have been busy elsewhere
_MIN_STEPS = 8  # of a kind, before it counts as known


class StepShape(msgspec.Struct, frozen=True):
    """What a step computed: prompt tokens with their context, and decoding requests with theirs."""

    num_prompt_tokens: int
    prompt_context: float  # Σ tokens · tokens before them
    num_decoding: int
    decode_context: int  # Σ tokens before


class StepCost(msgspec.Struct, kw_only=True):
    """The coefficients, in milliseconds. If those of one kind of step are all zero, its cost is unknown."""

    prefill_base_ms: float = 0.0
    prefill_token_ms: float = 0.0
    prefill_context_ms: float = 0.0
    decode_base_ms: float = 0.0
    decode_request_ms: float = 0.0
    decode_token_ms: float = 0.0

    def prefill_ms(self, num_tokens: int, num_cached_tokens: int, chunk_tokens: int) -> float:
        """Predict the time to compute `num_tokens` after `num_cached_tokens`, in chunks of `chunk_tokens`."""
        steps = -(-num_tokens // chunk_tokens)
        context = num_tokens * (num_cached_tokens + num_tokens / 2)
        return self.prefill_base_ms * steps + self.prefill_token_ms * num_tokens + self.prefill_context_ms * context

    def decode_step_ms(self, num_requests: int, num_context_tokens: int) -> float:
        """Predict the time of a decode step of requests with `num_context_tokens` tokens in all."""
        return self.decode_base_ms + self.decode_request_ms * num_requests + self.decode_token_ms * num_context_tokens


class LinearFit:
    """Recursive least squares of `y ≈ coefficients · x`, forgetting slowly.

    As long as all samples are alike, each x gets a share of y in proportion to (x / scale)².
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.num_samples = 0
        size = len(scales)
        self._scales = scales
        self._weights = [0.0] * size
        self._spread = [[_LOOSE if i == j else 0.0 for j in range(size)] for i in range(size)]

    @property
    def coefficients(self) -> list[float]:
        """The coefficients of the unscaled x, none below zero."""
        return [max(weight, 0.0) / scale for weight, scale in zip(self._weights, self._scales, strict=True)]

    def note(self, x: Sequence[float], y: float) -> None:
        """Add a sample."""
        scaled = [value / scale for value, scale in zip(x, self._scales, strict=True)]
        gain = [sum(map(float.__mul__, row, scaled)) for row in self._spread]
        norm = _FORGETTING + sum(map(float.__mul__, gain, scaled))
        predicted = sum(map(float.__mul__, self._weights, scaled))
        self.num_samples += 1
        error = y - predicted
        if self.num_samples > _MIN_STEPS:
            error = min(error, _MAX_SURPRISE * abs(predicted))
        self._weights = [w + g / norm * error for w, g in zip(self._weights, gain, strict=True)]
        for i, row in enumerate(self._spread):
            share = gain[i] / norm
            self._spread[i] = [(value - share * g) / _FORGETTING for value, g in zip(row, gain, strict=True)]
        self._bound_spread()

    def _bound_spread(self) -> None:
        """Bound the variance, so that a direction of x not seen for a long time is not forgotten altogether."""
        size = len(self._weights)
        largest = max(self._spread[i][i] for i in range(size))
        if largest > _LOOSE:
            self._spread = [[value * _LOOSE / largest for value in row] for row in self._spread]


class StepFit:
    """Fits a node's `StepCost` to its steps. Takes about 10 µs per step."""

    def __init__(self) -> None:
        self._prefill = LinearFit((1.0, 32.0, 1e6))  # short prompts alone: base and tokens share alike
        self._decode = LinearFit((1.0, 16.0, 1e4))

    def note(self, shape: StepShape, duration_ms: float) -> None:
        """Add a step that has run. If it is mixed, the predicted cost of decoding is subtracted to get its prefill."""
        decode = (1.0, float(shape.num_decoding), float(shape.decode_context))
        if not shape.num_prompt_tokens:
            self._decode.note(decode, duration_ms)
            return
        _, per_request, per_token = self._decode.coefficients
        rest = max(duration_ms - per_request * decode[1] - per_token * decode[2], 0.0)
        self._prefill.note((1.0, float(shape.num_prompt_tokens), float(shape.prompt_context)), rest)

    def proto(self) -> types_pb2.StepCost:
        """Return the coefficients; zeros for a kind of step of which fewer than _MIN_STEPS were seen."""
        cost = types_pb2.StepCost()
        if self._prefill.num_samples >= _MIN_STEPS:
            cost.prefill_base_ms, cost.prefill_token_ms, cost.prefill_context_ms = self._prefill.coefficients
        if self._decode.num_samples >= _MIN_STEPS:
            cost.decode_base_ms, cost.decode_request_ms, cost.decode_token_ms = self._decode.coefficients
        return cost
