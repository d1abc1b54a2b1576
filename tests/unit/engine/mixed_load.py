"""Requests of all kinds for an engine, and what became of each, to compare engines that must do the same."""

import dataclasses
import random
from collections import defaultdict, deque

import numpy as np
import pytest

from engine.request import PromptWork, RequestState

LONG = {"max_tokens": 12, "ignore_eos": True}


@dataclasses.dataclass
class Found:
    """The outcome of one request."""

    told: list = dataclasses.field(default_factory=list)
    tokens: list = dataclasses.field(default_factory=list)
    top_ids: list = dataclasses.field(default_factory=list)
    numbers: list = dataclasses.field(default_factory=list)  # log-probabilities and embeddings


class Load:
    """Requests of all kinds, which arrive one after the other."""

    def __init__(self, make_generation, seed, num_requests=11):
        draw = random.Random(seed)
        self.arrivals = []
        for key in range(num_requests):
            sampling = draw.choice(
                [
                    LONG,
                    {"max_tokens": draw.randrange(1, 20), "ignore_eos": True},
                    {"max_tokens": 30, "stop_token_ids": draw.sample(range(512), 60)},
                    {"temperature": 1.0, "seed": key, "max_tokens": 25, "stop_token_ids": draw.sample(range(512), 40)},
                    {"temperature": 0.7, "seed": key, "top_p": 0.9, "max_tokens": 9, "ignore_eos": True},
                    {"repetition_penalty": 1.3, "max_tokens": 9, "num_logprobs": 2, "ignore_eos": True},
                    {"max_tokens": 8, "num_logprobs": draw.randrange(3), "ignore_eos": True},
                ]
            )
            shared = draw.choice([0, 16, 24])
            prompt = [5] * shared + [draw.randrange(512) for _ in range(draw.randrange(1, 90))]
            options = {}
            if key % 7 == 3:
                options = {"prefill_only": True}
            elif key % 7 == 5:
                options = {"prefill_only": True, "prompt_work": PromptWork(num_logprobs=1, embeds=True)}
                sampling = {"max_tokens": 0}
            self.arrivals.append((make_generation(prompt, key=key, **sampling), options))
        self.starts = sorted(draw.randrange(40) for _ in self.arrivals)  # steps before they come

    def run(self, engine):
        """Return the outcome of each request, and how many steps ended while another was under way."""
        arrivals, requests, found = deque(zip(self.starts, self.arrivals, strict=True)), [], defaultdict(Found)
        num_steps = num_ahead = 0
        while arrivals or engine.has_work:
            while arrivals and (arrivals[0][0] <= num_steps or not engine.has_work):
                generation, options = arrivals.popleft()[1]
                requests.append(engine.add(generation, **options))
            step = engine.step()
            engine.check()
            num_steps += 1
            num_ahead += engine.steps.is_under_way
            for output in step.outputs:
                found[output.request.key].told.append((output.index, output.token_id, output.finish_reason))
                if output.logprobs is not None:
                    found[output.request.key].top_ids.append(output.logprobs.top_token_ids)
                    found[output.request.key].numbers += [output.logprobs.logprob, *output.logprobs.top_logprobs]
            for request, scored in step.prompt_logprobs:
                found[request.key].numbers += scored.logprobs.tolist()
            for request in step.ended:
                found[request.key].tokens = request.token_ids
                found[request.key].numbers += np.frombuffer(request.embedding, "<f4").tolist()
                if request.state is RequestState.HELD:
                    engine.release(request)
        assert engine.blocks.num_free_blocks == engine.num_blocks
        assert all(request.state is RequestState.FINISHED for request in requests)
        return found, num_ahead


def assert_same(found, expected):
    """Log-probabilities may differ by rounding, since the batches differ."""
    for key, one in expected.items():
        assert (found[key].told, found[key].tokens, found[key].top_ids) == (one.told, one.tokens, one.top_ids)
        assert found[key].numbers == pytest.approx(one.numbers, rel=1e-4, abs=1e-5)
    assert len(found) == len(expected)
