"""What a step of a node takes, in milliseconds: fitted where steps run, used wherever somebody has to predict.

    a step of prompts    base + token · tokens + context · Σ tokens · tokens before them
    a step of decoding   base + request · requests + token · Σ tokens before

A prompt token attends to all before it, which makes long prompts superlinear. The fit is least squares with
forgetting, so it follows a node whose machine gets busy; a coefficient below zero would predict nonsense somewhere, so
it counts as zero.
"""

from collections.abc import Sequence

import msgspec

from baton.v1 import types_pb2

_FORGETTING = 0.995  # weight of all earlier steps against the next one
_LOOSE = 1e4  # how little is known at first; also a bound, without which forgetting lets noise in
_MAX_SURPRISE = 3.0  # times the prediction; a step that was preempted by the machine says nothing of its shape
_MIN_STEPS = 8


class StepShape(msgspec.Struct, frozen=True):
    """What a step computed: prompt tokens with what came before them, and requests that decode."""

    num_prompt_tokens: int
    prompt_context: float  # Σ tokens · tokens before them
    num_decoding: int
    decode_context: int  # Σ tokens before


class StepCost(msgspec.Struct, kw_only=True):
    """The coefficients. A kind of step whose coefficients are all zero is unknown."""

    prefill_base_ms: float = 0.0
    prefill_token_ms: float = 0.0
    prefill_context_ms: float = 0.0
    decode_base_ms: float = 0.0
    decode_request_ms: float = 0.0
    decode_token_ms: float = 0.0

    def prefill_ms(self, num_tokens: int, num_cached_tokens: int, chunk_tokens: int) -> float:
        """Computing so many tokens after so many cached ones, in steps of `chunk_tokens`."""
        steps = -(-num_tokens // chunk_tokens)
        context = num_tokens * (num_cached_tokens + num_tokens / 2)
        return self.prefill_base_ms * steps + self.prefill_token_ms * num_tokens + self.prefill_context_ms * context

    def decode_step_ms(self, num_requests: int, num_context_tokens: int) -> float:
        """A step of so many requests that have so many tokens together."""
        return self.decode_base_ms + self.decode_request_ms * num_requests + self.decode_token_ms * num_context_tokens


class LinearFit:
    """Recursive least squares of `y ≈ coefficients · x`, forgetting slowly.

    While samples are alike, what they took is put down to the x that are the largest in terms of their `scales`.
    """

    def __init__(self, scales: Sequence[float]) -> None:
        self.num_samples = 0
        size = len(scales)
        self._scales = scales
        self._weights = [0.0] * size
        self._spread = [[_LOOSE if i == j else 0.0 for j in range(size)] for i in range(size)]

    @property
    def coefficients(self) -> list[float]:
        """The coefficients for x as it is given, none below zero."""
        return [max(weight, 0.0) / scale for weight, scale in zip(self._weights, self._scales, strict=True)]

    def note(self, x: Sequence[float], y: float) -> None:
        """One more sample."""
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
        """Keep what has not been seen for long from being forgotten altogether."""
        size = len(self._weights)
        largest = max(self._spread[i][i] for i in range(size))
        if largest > _LOOSE:
            self._spread = [[value * _LOOSE / largest for value in row] for row in self._spread]


class StepFit:
    """Learns a node's costs from its steps. About 10 µs a step."""

    def __init__(self) -> None:
        self._prefill = LinearFit((1.0, 32.0, 1e6))  # of short prompts alone, base and tokens get a like share
        self._decode = LinearFit((1.0, 16.0, 1e4))

    def note(self, shape: StepShape, duration_ms: float) -> None:
        """A step has run. One that mixes both kinds tells of prompts what decoding leaves."""
        decode = (1.0, float(shape.num_decoding), float(shape.decode_context))
        if not shape.num_prompt_tokens:
            self._decode.note(decode, duration_ms)
            return
        _, per_request, per_token = self._decode.coefficients
        rest = max(duration_ms - per_request * decode[1] - per_token * decode[2], 0.0)
        self._prefill.note((1.0, float(shape.num_prompt_tokens), float(shape.prompt_context)), rest)

    def proto(self) -> types_pb2.StepCost:
        """The coefficients as far as they are known; zeros for a kind of step that was hardly seen."""
        cost = types_pb2.StepCost()
        if self._prefill.num_samples >= _MIN_STEPS:
            cost.prefill_base_ms, cost.prefill_token_ms, cost.prefill_context_ms = self._prefill.coefficients
        if self._decode.num_samples >= _MIN_STEPS:
            cost.decode_base_ms, cost.decode_request_ms, cost.decode_token_ms = self._decode.coefficients
        return cost
