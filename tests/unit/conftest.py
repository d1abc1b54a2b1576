"""Model directories with small tokenizers in the styles of the well-known families; who shares a prefix index."""

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tests.unit.index_clients import Clients

TEXT = [
    "The quick brown fox jumps over the lazy dog. You are a helpful assistant, and I am the user of it.",
    "def main(argv):\n    return 0\n\n\nif __name__ == '__main__':\n    main()\n",
    "Größe, naïve café, 你好世界, こんにちは, Здравствуй, 🎉👩‍👩‍👧🇨🇭 hello hello system user assistant",
] * 3

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] | trim %}\n"
    "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}\n"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') }}\n"
    "{{- '\\n\\n' + system + '<|eot_id|>' }}\n"
    "{%- for message in messages %}\n"
    "    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}\n"
    "    {{- message['content'] | trim + '<|eot_id|>' }}\n"
    "{%- endfor %}\n"
    "{%- if tools is not none %}{{ tools | tojson }}{% endif %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}\n"
)
MISTRAL = (
    "{%- set ns = namespace(index=0) %}{{- bos_token }}"
    "{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (ns.index % 2 == 0) %}"
    "{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif %}"
    "{%- if message['role'] == 'user' %}{{- '[INST] ' + message['content'] + ' [/INST]' }}"
    "{%- else %}{% generation %}{{- ' ' + message['content'] + eos_token }}{% endgeneration %}{%- endif %}"
    "{%- set ns.index = ns.index + 1 %}{%- endfor %}"
)


def byte_level(special, *, bos=None):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    if bos:
        frame = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), frame])
    return tokenizer


def sentencepiece(special):
    """As Llama 2 and Mistral: spaces as ▁, unknown characters as byte tokens."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokens = ["<unk>", *special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=tokens, limit_alphabet=90, show_progress=False)
    tokenizer.train_from_iterator([line.replace(" ", "▁") for line in TEXT], trainer)
    # byte tokens are vocabulary, not added tokens
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"] = [t for t in spec["added_tokens"] if not t["content"].startswith("<0x")]
    tokenizer = Tokenizer.from_str(json.dumps(spec))
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return tokenizer


def write(path, tokenizer, config, template=None):
    path.mkdir(exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **config}
    (path / "tokenizer_config.json").write_text(json.dumps(config))
    (path / "config.json").write_text(json.dumps({"vocab_size": 1024, "max_position_embeddings": 512}))
    eos = tokenizer.token_to_id(config["eos_token"])
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [eos]}))
    if template:
        (path / "chat_template.jinja").write_text(template)
    return path


@pytest.fixture(scope="session")
def model_dirs(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    llama3 = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    return {
        "chatml": write(
            root / "chatml",
            byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]),
            {"eos_token": "<|im_end|>", "chat_template": CHATML},
        ),
        "llama3": write(
            root / "llama3",
            byte_level(llama3, bos="<|begin_of_text|>"),
            {"bos_token": {"__type": "AddedToken", "content": "<|begin_of_text|>"}, "eos_token": "<|eot_id|>"},
            LLAMA3,
        ),
        "mistral": write(
            root / "mistral",
            sentencepiece(["<s>", "</s>", "[INST]", "[/INST]"]),
            {
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "chat_template": [
                    {"name": "rag", "template": "{{ 1 }}"},
                    {"name": "default", "template": MISTRAL},
                ],
            },
        ),
    }


@pytest.fixture
async def clients(redis_url: str) -> AsyncIterator[Clients]:
    async with Clients(redis_url) as clients:
        yield clients


@pytest.fixture
async def killable(redis_server: Any) -> AsyncIterator[Clients]:
    async with Clients(redis_server.url) as clients:
        yield clients
        redis_server.thaw()
