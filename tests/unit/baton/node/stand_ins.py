from baton.request import Generation, SamplingParams


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class FakeLeg:
    def __init__(self, key: int, attempt: int = 0, router_id: str = "router") -> None:
        self.generation = Generation(
            request_id=f"r{key}",
            key=key,
            attempt=attempt,
            token_ids=[1, 2],
            num_prompt_tokens=2,
            sampling=SamplingParams(),
            router_id=router_id,
        )
        self.num_cancels = 0

    def cancel(self) -> None:
        self.num_cancels += 1
