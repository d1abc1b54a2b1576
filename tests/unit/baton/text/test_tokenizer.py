import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from baton.errors import CheckpointError, InvalidRequest
from baton.text.tokenizer import Tokenizer

STYLES = ["chatml", "llama3", "mistral"]


@pytest.fixture(scope="module")
def pairs(model_dirs):
    return {s: (Tokenizer.load(d), AutoTokenizer.from_pretrained(d)) for s, d in model_dirs.items()}


@pytest.mark.parametrize("style", STYLES)
@given(text=st.text(max_size=60))
def test_plain_text_encodes_as_transformers_does(pairs, style, text):
    ours, reference = pairs[style]
    if ours.control_tokens.occur_in(text):
        return
    assert ours.encode(text) == reference(text)["input_ids"]


def test_a_tokenizers_bos_is_added_to_a_text(pairs):
    ours, _ = pairs["llama3"]
    assert ours.token(ours.encode("hello")[0]) == "<|begin_of_text|>"
    assert ours.encode("")[0] == ours.encode("hello")[0]


@pytest.mark.parametrize("style", STYLES)
def test_special_tokens_in_a_clients_text_are_plain_text(pairs, style):
    ours, reference = pairs[style]
    for name in ours.control_tokens.split("".join(reference.all_special_tokens)):
        text = f"before {name.text} after{name.text}{name.text}\n{name.text}"
        token_ids = ours.encode(text)
        num_framing = len(ours.encode("a")) - len(reference.encode("a", add_special_tokens=False))
        assert ours.special_ids.isdisjoint(token_ids[num_framing:])
        assert ours.decode(token_ids) == text


@pytest.mark.parametrize("style", STYLES)
def test_a_rendered_conversation_keeps_the_templates_special_tokens(pairs, style):
    ours, reference = pairs[style]
    end = reference.eos_token
    rendered = f"{end}user\nWho are you?{end}"
    assert ours.encode_chat(rendered) == reference.encode(rendered, add_special_tokens=False)


@pytest.mark.parametrize("style", STYLES)
def test_marked_special_tokens_are_plain_text_between_real_ones(pairs, style):
    ours, reference = pairs[style]
    end = reference.eos_token
    content = f"please {end} stop"
    marks = ours.control_tokens.choose_marks([content])
    token_ids = ours.encode_chat(f"{end}user {ours.control_tokens.mark(content, marks)}{end}", marks)
    assert token_ids.count(reference.eos_token_id) == 2
    assert token_ids[-1] == reference.eos_token_id
    assert ours.decode(token_ids).strip() == f"user {content}"


def test_a_mark_without_its_token_is_dropped(pairs):
    ours, _ = pairs["chatml"]
    marks = ours.control_tokens.choose_marks([""])
    token_ids = ours.encode_chat(f"ab{marks.opening}c{marks.closing}", marks)
    assert ours.decode(token_ids) == "abc"


def test_clients_cannot_forge_marks(pairs):
    ours, _ = pairs["chatml"]
    text = "".join(chr(c) for c in range(0xFDD0, 0xFDEE))
    marks = ours.control_tokens.choose_marks([text])
    assert not set(marks) & set(text)
    with pytest.raises(InvalidRequest):
        ours.control_tokens.choose_marks([text + chr(0xFDEE) + chr(0xFDEF)])


def test_special_tokens_are_found_across_search_windows(pairs):
    ours, _ = pairs["chatml"]
    for shift in (-20, -12, -5, -1, 0, 1):
        text = "<" * (16 * 1024 + shift) + "<|im_start|>" + "x" * 40_000 + "<|im_end|>"
        assert [p.text for p in ours.control_tokens.split(text) if p.quoted] == ["<|im_start|>", "<|im_end|>"]


def test_a_special_tokens_spelling_in_the_vocabulary_is_split():
    backend = tokenizers.Tokenizer(models.BPE({"<": 0, "s": 1, ">": 2, "<s": 3, "<s>": 4}, [("<", "s"), ("<s", ">")]))
    backend.add_special_tokens([AddedToken("<s>", normalized=False)])
    assert backend.encode("<s>").ids == [4]
    assert 4 not in Tokenizer(backend).encode("<s>")


def test_another_spelling_of_a_special_token_is_refused():
    backend = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([AddedToken("[end]", normalized=True)])
    tokenizer = Tokenizer(backend)
    assert tokenizer.special_ids.isdisjoint(tokenizer.encode("a [end] a"))
    with pytest.raises(InvalidRequest):
        tokenizer.encode("a [END] a")


def test_tokens_of_tokenizer_config_are_added(model_dirs, tmp_path):
    spec = json.loads((model_dirs["chatml"] / "tokenizer.json").read_text())
    last = spec["added_tokens"].pop()
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    config = {"added_tokens_decoder": {str(last["id"]): {"content": "<tool>", "special": True, "normalized": False}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = Tokenizer.load(tmp_path)
    assert last["id"] in tokenizer.special_ids
    assert tokenizer.encode_chat("<tool>") == [last["id"]]
    config["added_tokens_decoder"] = {"5000": {"content": "<tool>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"model": 3}', b"\xff\xfe"])
def test_a_broken_tokenizer_file_is_named(tmp_path, content):
    if isinstance(content, bytes):
        (tmp_path / "tokenizer.json").write_bytes(content)
    elif content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)
