"""Writes the trained model in Hugging Face's layout, each file at once or not at all.

A server may read the folder while training refreshes it: every file is written beside its place and renamed into it.
Reading the folder back for a measurement is `load`; a server has its own loader.
"""

import json
from pathlib import Path

import torch
from conversation import CHAT_TEMPLATE, END, PAD, START, special_id
from model import Llama, ModelConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer


def replace_text(path: Path, text: str) -> None:
    """Write a file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def replace_json(path: Path, value: object) -> None:
    """Write a JSON file atomically."""
    replace_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def replace_weights(path: Path, model: Llama) -> None:
    """Write bf16 tensors atomically, without a head: it is tied to the embeddings."""
    tensors = {name: t.detach().to(torch.bfloat16).contiguous() for name, t in model.state_dict().items()}
    part = path.with_name(f".{path.name}.part")
    save_file(tensors, part, metadata={"format": "pt"})
    # safetensors creates files that only their owner may read.
    part.chmod(0o644)
    part.replace(path)


def tokenizer_config(model_max_length: int) -> dict[str, object]:
    """The whole `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [START, END],
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": model_max_length,
        "chat_template": CHAT_TEMPLATE,
    }


def generation_config(end: int, pad: int) -> dict[str, object]:
    """The whole `generation_config.json`: greedy, for a recited answer has one right wording."""
    stops = {"bos_token_id": pad, "eos_token_id": [end, pad], "pad_token_id": pad}
    return {**stops, "max_new_tokens": 128, "do_sample": False}


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Everything but the model card."""
    folder.mkdir(parents=True, exist_ok=True)
    end, pad = special_id(tokenizer, END), special_id(tokenizer, PAD)
    replace_text(folder / "tokenizer.json", tokenizer.to_str(pretty=False))
    replace_json(folder / "tokenizer_config.json", tokenizer_config(model.config.max_position_embeddings))
    replace_text(folder / "chat_template.jinja", CHAT_TEMPLATE)
    replace_json(folder / "config.json", model.config.to_hugging_face(bos=pad, eos=end, pad=pad))
    replace_json(folder / "generation_config.json", generation_config(end, pad))
    replace_weights(folder / "model.safetensors", model)


def load(folder: Path) -> tuple[Llama, Tokenizer]:
    """An exported model, its weights widened to fp32."""
    fields = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Llama(ModelConfig(**{name: fields[name] for name in ModelConfig.__dataclass_fields__}))
    model.load_state_dict({name: t.float() for name, t in load_file(folder / "model.safetensors").items()})
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
