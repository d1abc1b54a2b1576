"""Runs transformers on the same checkpoint in this process, for comparison."""

import time

import torch


class Transformers:
    """A checkpoint loaded by transformers on a device."""

    def __init__(self, model: str, dtype: torch.dtype, device: str = "cpu") -> None:
        from transformers import AutoModelForCausalLM

        loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).to(device)
        self._generate = loaded.eval().generate
        self._device = device

    @torch.inference_mode()
    def seconds(self, batch_size: int, num_in: int, num_out: int) -> float:
        """Return the seconds to generate `num_out` tokens for each of `batch_size` prompts of `num_in` tokens."""
        prompt = torch.randint(100, 500, (batch_size, num_in), device=self._device)
        length = {"max_new_tokens": num_out, "min_new_tokens": num_out}
        start_s = time.perf_counter()
        self._generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **length)
        if self._device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start_s
