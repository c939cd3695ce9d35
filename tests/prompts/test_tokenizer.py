import importlib.util
import itertools
import json
import pathlib
import random
import sys

import numpy as np
import pytest

from keras_diffusion.prompts import tokenizer as module
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

GOLDEN = json.loads((pathlib.Path(__file__).parents[1] / "golden" / "tokenizer.json").read_text())
START, END = 49406, 49407


@pytest.fixture
def tokenizer():
    return SimpleTokenizer()


def ascii_unit(text):
    return ascii(text[:8])


def inner(tokens):
    assert (tokens[0], tokens[-1]) == (START, END)
    return tokens[1:-1]


# ---- Equal to the original


def test_tokens_equal_openais(tokenizer):
    assert len(GOLDEN) > 400
    assert [text for text, tokens in GOLDEN if tokenizer.encode(text) != tokens] == []


def test_tokens_equal_transformers(tokenizer, tmp_path):
    transformers = pytest.importorskip("transformers")
    words, merges = module.table()
    vocabulary, lines = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocabulary.write_text(json.dumps({word: token for token, word in enumerate(words)}))
    lines.write_text("\n".join(["#version: 0.2", *(f"{words[a]} {words[b]}" for a, b in merges)]), "utf-8")
    theirs = transformers.CLIPTokenizer(str(vocabulary), str(lines))
    # From version 5 on, theirs does without ftfy: plain text is what all agree on.
    plain = [text for text, _ in GOLDEN if module._PLAIN_TEXT.fullmatch(text) and "<|" not in text]
    assert len(plain) > 100
    assert [text for text in plain if tokenizer.encode(text) != theirs(text).input_ids] == []


def test_known_prompt(tokenizer):
    tokens = [START, 320, 1125, 539, 550, 18376, 6765, 320, 4558, 525, 7496, END]
    assert tokenizer.encode("A photo of an  astronaut\nriding a horse on Mars ") == tokens
    text = "<|startoftext|>a photo of an astronaut riding a horse on mars <|endoftext|>"
    assert tokenizer.decode(tokens) == text


def test_attributes(tokenizer):
    assert (tokenizer.start_of_text, tokenizer.end_of_text, tokenizer.vocab_size) == (START, END, 49408)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\0", "\x1b[0m"])
def test_nothing_has_two_tokens(tokenizer, text):
    assert tokenizer.encode(text) == [START, END]


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\ud800", "\ufffd"),
        ("\ud83d\ude00", "😀"),
        ("a\0b", "ab"),
        ("â€œcafÃ©â€\x9d", '"café"'),
        ("e\u0301", "é"),
        ("&amp;lt;b&gt;", "<b>"),
        ("&lt; <", "< <"),
        ("&#" + "9" * 5000 + ";", "\ufffd"),
        ("&#1" + "0" * 5000 + ";", "\ufffd"),
        ("&#" + "0" * 5000 + "65;", "a"),
        ("ＦＵＬＬ", "full"),
    ],
)
def test_cleaning(tokenizer, text, same):
    assert tokenizer.encode(text) == tokenizer.encode(same)
    assert len(tokenizer.encode(text)) > 2


def test_plain_text_needs_no_repair(monkeypatch):
    pick = random.Random(0)
    texts = ["".join(map(chr, pick.choices(range(128), k=8))) for _ in range(3000)]
    texts += [f"a{first}{second};b" for first, second in itertools.product(map(chr, range(128)), repeat=2)][::7]
    cleaned = list(map(module._clean, texts))
    monkeypatch.setattr(module, "_PLAIN_TEXT", module.regex.compile("(?!)"))
    assert list(map(module._clean, texts)) == cleaned


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<|endoftext|>", [END]),
        ("a<|ENDOFTEXT|>a", [320, END, 320]),
        ("<|startoftext|><|endoftext|>", [START, END]),
    ],
)
def test_markers_are_special(tokenizer, text, tokens):
    assert inner(tokenizer.encode(text)) == tokens


def test_markers_behind_punctuation_are_text(tokenizer):
    assert END not in inner(tokenizer.encode("!<|endoftext|>"))


# ---- Byte-pair encoding


def plain_byte_pair_encoding(piece, merges):
    """All occurrences of the first pair of the table, again and again."""
    tokens = list(piece.encode().translate(module._TOKEN_OF_BYTE))
    tokens[-1] += 256
    while found := {merges[pair] for pair in itertools.pairwise(tokens) if pair in merges}:
        first, rest, tokens = min(found), tokens, []
        while rest:
            size = 2 if merges.get(tuple(rest[:2])) == first else 1
            tokens.append(first if size == 2 else rest[0])
            rest = rest[size:]
    return tuple(tokens)


@pytest.mark.parametrize("letters", ["a", "ab", "aeinrst", "lo", "'!.", "éÃ", "😀😁", "abcdefghijklmnopqrstuvwxyz漢"])
def test_byte_pair_encoding_equals_the_plain_algorithm(letters):
    merges = module.table()[1]
    pick = random.Random(letters)
    pieces = ["".join(pick.choices(letters, k=pick.randint(1, 60))) for _ in range(150)]
    assert [piece for piece in pieces if module._encode_piece(piece) != plain_byte_pair_encoding(piece, merges)] == []


def test_a_pair_comes_after_its_halves():
    words, merges = module.table()
    assert len(words) == len(set(words)) == 49408
    assert list(merges.values()) == list(range(512, 49406))
    assert all(left < merged and right < merged for (left, right), merged in merges.items())


# ---- Long and hostile


# Most of these would take far longer if their time were the square of their length.
N = 30_000


@pytest.mark.parametrize("text", ["a" * N, "lo" * N, "é" * N, "'s" * N, "\u0327\u0301" * N], ids=ascii_unit)
def test_long_texts_are_decided(tokenizer, text):
    decoded = tokenizer.decode(inner(tokenizer.encode(text)))
    assert sorted(decoded.replace(" ", "")) == sorted(text)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("\n" * N, ""),
        ("\ud83d" * N, "\ufffd" * N),
        ("&amp;" * N, "&" * N),
        ("&" + "amp;" * N, "&" + "amp;" * (N - 2)),
        ("&semi" * N + ";", "&semi" * (N - 2) + ";"),
        ("&#" + "9" * N, "\ufffd"),
    ],
    ids=ascii_unit,
)
def test_long_repairs_are_decided(tokenizer, text, same):
    expected = [token for piece in module._PIECE.findall(same) for token in module._encode_piece(piece)]
    assert inner(tokenizer.encode(text)) == expected


@pytest.mark.parametrize(("size", "accented"), [(2048, "é"), (2049, "e\u0301")])
def test_long_texts_are_repaired_in_parts(tokenizer, size, accented):
    text = "e\u0301".rjust(size, "!")
    assert tokenizer.decode(inner(tokenizer.encode(text))).replace(" ", "").endswith(accented)


def test_any_characters_have_tokens(tokenizer):
    pick = random.Random(0)
    for limit in (0x80, 0x250, 0x3000, 0x10000, 0x110000):
        for _ in range(100):
            text = "".join(chr(pick.randrange(limit)) for _ in range(pick.randint(1, 100)))
            tokenizer.decode(tokenizer.encode(text))


def test_cache_is_bounded(tokenizer):
    module._encode_cached.cache_clear()
    tokenizer.encode("z" * 65)
    assert module._encode_cached.cache_info().currsize == 0
    tokenizer.encode("z" * 64)
    assert module._encode_cached.cache_info()[2:] == (16384, 1)


def test_plain_prompts_load_no_ftfy(tokenizer, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    assert len(tokenizer.encode("An 8k photo, it's <sharp>!")) == 13
    with pytest.raises(ImportError):
        tokenizer.encode("é")


def test_construction_loads_notable():
    spec = importlib.util.find_spec(module.__name__)
    fresh = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fresh)
    tokenizer = fresh.SimpleTokenizer()
    assert fresh.table.cache_info().currsize == 0
    assert tokenizer.encode("cat") == [START, 2368, END]


# ---- Decoding


@pytest.mark.parametrize("text", ["a cat", "naïve café 漢字", "😀", "a</w>"])
def test_decode_returns_the_words(tokenizer, text):
    decoded = tokenizer.decode(inner(tokenizer.encode(text)))
    assert decoded.replace(" ", "") == text.replace(" ", "")


def test_decode_replaces_broken_characters(tokenizer):
    assert tokenizer.decode([127]) == "\ufffd"
    assert tokenizer.decode(np.array([2368, 0], "int32")) == "cat !"


@pytest.mark.parametrize("token", [-1, 49408, 1.0, "a", None])
def test_decode_names_the_bad_token(tokenizer, token):
    with pytest.raises(ValueError, match=r"from 0 to 49407\. Received: tokens\[1\]="):
        tokenizer.decode([320, token])


# ---- New words


def test_added_words(tokenizer):
    assert tokenizer.add_tokens("<cat-toy>") == 1
    assert tokenizer.add_tokens(["<Ünï>", "zwxq"]) == 2
    assert tokenizer.vocab_size == 49411
    assert inner(tokenizer.encode("a <cat-toy>, <ÜNÏ>ZWXQ")) == [320, 49408, 267, 49409, 49410]
    assert tokenizer.decode([320, 49408, 49409]) == "a <cat-toy> <ünï> "
    assert tokenizer.encode("no new word") == SimpleTokenizer().encode("no new word")


def test_an_added_word_may_be_several_tokens(tokenizer):
    assert tokenizer.add_tokens(["<cat-toy>", "zwxq"], count=3) == 2
    assert tokenizer.add_tokens("<one>") == 1
    assert tokenizer.vocab_size == 49415
    assert tokenizer.added_tokens == {
        "<cat-toy>": [49408, 49409, 49410],
        "zwxq": [49411, 49412, 49413],
        "<one>": [49414],
    }
    assert tokenizer.vocab[320] == "a</w>"
    assert tokenizer.vocab[49408:] == ["", "", "<cat-toy></w>", "", "", "zwxq</w>", "<one></w>"]
    assert tokenizer.add_tokens(["<two>", "<three>"], [2, 3]) == 2
    assert list(map(len, tokenizer.added_tokens.values())) == [3, 3, 1, 2, 3]
    with pytest.raises(ValueError, match="a number for each word"):
        tokenizer.add_tokens(["<four>", "<five>"], [4])
    tokens = inner(tokenizer.encode("a <cat-toy>, <one>"))
    assert tokens == [320, 49408, 49409, 49410, 267, 49414]
    assert tokenizer.decode(tokens) == "a <cat-toy> , <one> "
    assert tokenizer.decode(tokens[2:]) == "<cat-toy> , <one> "


@pytest.mark.parametrize(("count", "error"), [(0, ValueError), (1001, ValueError), (1.0, TypeError), (True, TypeError)])
def test_a_word_is_at_least_one_token(tokenizer, count, error):
    with pytest.raises(error, match="`count`"):
        tokenizer.add_tokens("<new>", count)
    assert tokenizer.vocab_size == 49408


def test_added_words_are_found_first_and_whole(tokenizer):
    tokenizer.add_tokens(["<cat>", "<cat>_1", "zwxq", "(z*)"])
    cat, longer, word, starred = range(49408, 49412)
    assert inner(tokenizer.encode("two<cat>s")) == [1237, cat, 338]
    assert inner(tokenizer.encode("!<<cat>>!")) == [*inner(tokenizer.encode("!<")), cat, *inner(tokenizer.encode(">!"))]
    assert inner(tokenizer.encode("<cat>_1 <cat>_<cat>")) == [longer, cat, 318, cat]
    assert inner(tokenizer.encode("<cat>_12"))[0] == cat
    assert inner(tokenizer.encode("zwxq's(Z*)")) == [word, 568, starred]
    assert word not in tokenizer.encode("zwxqs azwxq zwxq2 ézwxq")


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        ("cat", ValueError, "token 2368 already.*Received: tokens='cat'"),
        ("<|EndOfText|>", ValueError, "token 49407 already"),
        (["<new>", " \n"], ValueError, r"empty.*Received: tokens\[1\]='"),
        (["<new>", "<NEW>"], ValueError, r"token 49409 already.*Received: tokens\[1\]='<NEW>'"),
        ("<old>", ValueError, "token 49408 already"),
        (["<new>", 3], TypeError, r"tokens\[1\]=3 of type int"),
        ([], ValueError, "at least one"),
        (None, TypeError, "Received: tokens=None"),
    ],
)
def test_bad_words_add_nothing(tokenizer, words, error, message):
    tokenizer.add_tokens("<old>")
    with pytest.raises(error, match=message):
        tokenizer.add_tokens(words)
    assert tokenizer.vocab_size == 49409
    assert 49409 not in tokenizer.encode("<new>")


# ---- Arrays


@pytest.mark.parametrize("pad_token", [0, END])
def test_tokenize_pads(tokenizer, pad_token):
    rows = tokenizer.tokenize(["cat", ""], pad_token=pad_token)
    assert (rows.shape, rows.dtype) == ((2, 77), np.int32)
    assert rows[:, :4].tolist() == [[START, 2368, END, pad_token], [START, END, pad_token, pad_token]]
    assert np.all(rows[:, 4:] == pad_token)


def test_tokenize_one_prompt(tokenizer):
    assert tokenizer.tokenize("cat", pad_token=0, length=5).tolist() == [[START, 2368, END, 0, 0]]


def test_the_longest_prompt_fits(tokenizer):
    rows = tokenizer.tokenize("cat " * 75, pad_token=0)
    assert rows.tolist() == [[START, *[2368] * 75, END]]


def test_too_long_tells_what_does_not_fit(tokenizer):
    message = (
        r"can have 77 tokens.* this one has 78\. .* from 'dog' on\. "
        r"Received: prompts\[1\]='(cat ){49}cat$"
    )
    with pytest.raises(ValueError, match=message):
        tokenizer.tokenize(["cat", "cat " * 75 + "dog"], pad_token=0)


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ([], ValueError, "at least one"),
        (3, TypeError, "Received: prompts=3"),
        (b"cat", TypeError, "Received: prompts=b'cat'"),
        (["cat", None], TypeError, r"prompts\[1\]=None of type NoneType"),
        ([["cat"]], TypeError, r"prompts\[0\]=\['cat'\] of type list"),
    ],
)
def test_wrong_prompts(tokenizer, prompts, error, message):
    with pytest.raises(error, match=message):
        tokenizer.tokenize(prompts, pad_token=0)


@pytest.mark.parametrize("text", [None, b"cat", ["cat"], 1])
def test_encode_takes_a_str(tokenizer, text):
    with pytest.raises(TypeError, match=r"`text` must be a str\. Received: text="):
        tokenizer.encode(text)
