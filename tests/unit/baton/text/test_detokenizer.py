import json
import time

import pytest
import tokenizers
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from baton.text.detokenizer import TokenTexts
from baton.text.tokenizer import Tokenizer

STYLES = ["chatml", "llama3", "mistral"]
EMOJI = "👩‍👩‍👧 🎉🇨🇭 naïve é 你好世界"


@pytest.fixture(scope="module")
def tokenizers_of(model_dirs):
    return {style: Tokenizer.load(path) for style, path in model_dirs.items()}


def stream(tokenizer, token_ids, at_start=True):
    detokenizer = TokenTexts(tokenizer).detokenizer(at_start=at_start)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.finish()]


@given(token_ids=st.lists(st.integers(0, 720), max_size=40))
@example(token_ids=[])
def test_streamed_byte_level_tokens_equal_the_full_decode(tokenizers_of, token_ids):
    tokenizer = tokenizers_of["chatml"]
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


@pytest.mark.parametrize("style", STYLES)
@given(text=st.one_of(st.text(max_size=30), st.sampled_from([EMOJI, EMOJI * 3, " ", "  x", "\n\n"])))
def test_an_encoded_text_streams_back_unchanged(tokenizers_of, style, text):
    tokenizer = tokenizers_of[style]
    token_ids = tokenizer.encode(text)
    pieces = stream(tokenizer, token_ids)
    assert "".join(pieces) == tokenizer.decode(token_ids)
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("style", STYLES)
@given(token_ids=st.lists(st.integers(0, 720), max_size=40))
def test_pieces_equal_streamed_text_where_nothing_is_held_back(tokenizers_of, style, token_ids):
    tokenizer = tokenizers_of[style]
    texts = TokenTexts(tokenizer)
    detokenizer, streamed = texts.detokenizer(at_start=True), ""
    for token_id in token_ids:
        if detokenizer.is_settled and (piece := texts.pieces[token_id]) is not None:
            streamed += json.loads(b'"%b"' % piece)
        else:
            streamed += detokenizer.push(token_id)
    streamed += detokenizer.finish()
    assert streamed == "".join(stream(tokenizer, token_ids))


@pytest.mark.parametrize("style", STYLES)
@given(token_ids=st.lists(st.integers(0, 720), max_size=40))
@example(token_ids=[174, 99, 5])  # of Llama 3: half of a surrogate, which is two characters once it is lost
def test_tokens_appear_at_their_predicted_places(tokenizers_of, style, token_ids):
    """This holds even after an incomplete character."""
    texts = TokenTexts(tokenizers_of[style])
    detokenizer, text, places = texts.detokenizer(at_start=False), "", []
    for token_id in token_ids:
        places.append(len(text) + detokenizer.num_lost(token_id))
        text += detokenizer.push(token_id)
    text += detokenizer.finish()
    assert places == sorted(places)
    for token_id, place in zip(token_ids, places, strict=True):
        alone = texts.token_bytes(token_id).decode(errors="replace")
        if token_id not in tokenizers_of[style].special_ids and "\ufffd" not in alone:
            assert text[place:].startswith(alone)


def test_partial_characters_and_special_tokens_have_no_piece(tokenizers_of):
    tokenizer = tokenizers_of["chatml"]
    texts = TokenTexts(tokenizer)
    *parts, _ = tokenizer.encode("🎈")
    assert [texts.pieces[token_id] for token_id in (*parts, *tokenizer.special_ids, 10**6)] == [None] * (
        len(parts) + len(tokenizer.special_ids) + 1
    )
    assert texts.pieces[tokenizer.encode('"')[0]] == b'\\"'


def test_a_character_is_never_split(tokenizers_of):
    tokenizer = tokenizers_of["chatml"]
    pieces = stream(tokenizer, tokenizer.encode("🎉🎈"))
    assert set("".join(pieces)) == {"🎉", "🎈"}
    assert len(tokenizer.encode("🎈")) > 1


def test_an_incomplete_character_at_the_end_is_shown(tokenizers_of):
    tokenizer = tokenizers_of["chatml"]
    token_ids = tokenizer.encode("🎈")[:-1]
    assert stream(tokenizer, token_ids)[-1] == "\ufffd"


def test_special_tokens_and_unknown_ids_have_no_text(tokenizers_of):
    tokenizer = tokenizers_of["chatml"]
    assert "".join(stream(tokenizer, [*tokenizer.special_ids, 10**6])) == ""
    assert TokenTexts(tokenizer).token_bytes(next(iter(tokenizer.special_ids))).startswith(b"<|")


def test_a_continuation_keeps_its_first_space(tokenizers_of):
    tokenizer = tokenizers_of["mistral"]
    token_ids = tokenizer.encode("hello")[1:]
    assert "".join(stream(tokenizer, token_ids, at_start=True)) == "hello"
    assert "".join(stream(tokenizer, token_ids, at_start=False)) == " hello"


def test_bytes_of_tokens_add_up_to_the_text(tokenizers_of):
    for style in STYLES:
        tokenizer = tokenizers_of[style]
        texts = TokenTexts(tokenizer)
        token_ids = [i for i in tokenizer.encode(EMOJI) if i not in tokenizer.special_ids]
        assert b"".join(map(texts.token_bytes, token_ids)).decode().strip() == EMOJI


@pytest.mark.parametrize(
    ("decoder", "words"),
    [
        (decoders.WordPiece(prefix="##"), ["hel", "##lo", "wor", "##ld", "!"]),
        (None, ["hel", "lo"]),
        (decoders.Fuse(), ["a", "b"]),
    ],
)
def test_other_decoders_stream_to_the_full_decode(decoder, words):
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer(backend)
    token_ids = list(range(len(words)))
    assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_places_after_an_incomplete_character_are_right_with_other_decoders():
    """With a byte-level decoder in a sequence with another one, tokens have to be decoded together."""
    words = ["\u00f0\u0141", "you", "\u00f0", "\u0141\u0130\u012a"]  # byte-level spelling of parts of an emoji
    backend = tokenizers.Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="you"))
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    for token_ids, expected in (([0, 1], [0, 1]), ([1, 0, 1, 1], [0, 3, 4, 7])):
        detokenizer, text, places = TokenTexts(Tokenizer(backend)).detokenizer(at_start=True), "", []
        for token_id in token_ids:
            places.append(len(text) + detokenizer.num_lost(token_id))
            text += detokenizer.push(token_id)
        assert places == expected


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_streams_to_the_full_decode(scheme):
    vocab = {"▁a": 0, "b": 1, "▁": 2, "c▁d": 3}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="b"))
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    tokenizer = Tokenizer(backend, {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme})
    for token_ids in ([0, 1, 0], [1, 0], [2, 0, 2]):
        assert "".join(stream(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_the_cost_of_a_token_does_not_grow_with_the_output(tokenizers_of):
    """This holds even if no bytes ever make a character."""
    tokenizer = tokenizers_of["chatml"]
    lone = next(i for i in range(700) if TokenTexts(tokenizer).token_bytes(i) == b"\xf0")

    def seconds(num_tokens):
        detokenizer = TokenTexts(tokenizer).detokenizer(at_start=True)
        began = time.process_time()
        for _ in range(num_tokens):
            detokenizer.push(lone)
        return time.process_time() - began

    assert seconds(100_000) < 2.0
