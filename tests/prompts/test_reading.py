"""A1111's prompts: weights by its definition, chunks, and contexts."""

import logging
import math
from itertools import groupby

import numpy as np
import pytest

from keras_diffusion.architectures import SD14, SD21
from keras_diffusion.prompts import reading as prompts
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

TOKENIZER = SimpleTokenizer()
START, END = TOKENIZER.start_of_text, TOKENIZER.end_of_text


def words(text):
    return TOKENIZER.encode(text)[1:-1]


def read(prompt, shape=SD14.text_encoder, prompt_weighting=True, **options):
    (text,) = prompts.read("prompt", prompt, TOKENIZER, shape, prompt_weighting, **options)
    return text


# Weights


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("normal text", [("normal text", 1)]),
        ("an (important) word", [("an ", 1), ("important", 1.1), (" word", 1)]),
        ("an [unimportant] word", [("an ", 1), ("unimportant", 1 / 1.1), (" word", 1)]),
        ("(unbalanced", [("unbalanced", 1.1)]),
        ("[unbalanced", [("unbalanced", 1 / 1.1)]),
        ("unopened) :1.3) ]", [("unopened) :1.3) ]", 1)]),
        (r"\(literal\]", [("(literal]", 1)]),
        (r"\[a\) \\ b", [(r"[a) \ b", 1)]),
        (r"(a\):1.5)", [("a)", 1.5)]),
        ("a\\b\\", [("ab", 1)]),
        ("(unnecessary)(parens)", [("unnecessaryparens", 1.1)]),
        ("((a))", [("a", 1.1**2)]),
        ("[[a]]", [("a", 1.1**-2)]),
        ("([a])", [("a", 1)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)]),
        ("(a: 1.3 )(b:.5)(c:2.)(d:+3)(e:-4)", [("a", 1.3), ("b", 0.5), ("c", 2), ("d", 3), ("e", -4)]),
        ("(a:1.2.3)(b:x)(c:)", [("a:1.2.3b:xc:", 1.1)]),
        ("(a:0)b", [("a", 0), ("b", 1)]),
        ("[a:1.3]", [("a:1.3", 1 / 1.1)]),
        (
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            [
                *(("a ", 1), ("house", 1.573), (" ", 1.1), ("on", 1), (" a ", 1.1), ("hill", 0.55), (", sun, ", 1.1)),
                *(("sky", 1.4641), (".", 1.1)),
            ],
        ),
    ],
)
def test_weights(prompt, expected):
    (part,) = prompts.parse(prompt)
    assert [text for text, _ in part] == [text for text, _ in expected]
    assert [weight for _, weight in part] == pytest.approx([weight for _, weight in expected], abs=1e-8)


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("sky BREAK sea", ["sky ", " sea"]),
        ("(sky BREAK sea:1.2)", ["sky ", " sea"]),
        ("BREAKFAST", ["BREAKFAST"]),
        ("break", ["break"]),
        ("(sky)BREAK[sea]", ["sky", "sea"]),
    ],
)
def test_breaks(prompt, texts):
    assert ["".join(text for text, _ in part) for part in prompts.parse(prompt)] == texts


def definition(prompt):
    """A1111's rules, character by character: what closes a bracket multiplies all that came after its opening."""
    letters, opened, i = [], {"(": [], "[": []}, 0
    factors = {"(": 1.1, "[": 1 / 1.1}

    def close(bracket, factor):
        for letter in letters[opened[bracket].pop() :]:
            letter[1] *= factor

    while i < len(prompt):
        character, rest = prompt[i], prompt[i + 1 :]
        number = rest.partition(")")[0]
        if character == "\\":
            literal = rest[:1] if rest[:1] in tuple("()[]\\") else ""
            letters += [[literal, 1.0]] * bool(literal)
            i += len(literal)
        elif character in opened:
            opened[character].append(len(letters))
        elif character == ":" and ")" in rest and is_number(number) and opened["("]:
            close("(", float(number))
            i += len(number) + 1
        elif character in ")]" and opened["(["[")]".index(character)]]:
            bracket = "(["[")]".index(character)]
            close(bracket, factors[bracket])
        else:
            letters.append([character, 1.0])
        i += 1
    for bracket in opened:
        while opened[bracket]:
            close(bracket, factors[bracket])
    return ["".join(letter for letter, _ in letters), [weight for _, weight in letters]]


def is_number(text):
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def test_random_prompts_are_read_by_the_definition():
    random = np.random.default_rng(0)
    pieces = ["a", "b ", "ü", ", ", "(", "(", ")", "[", "]", ":1.3)", ": .5 )", ":-2)", ":", r"\(", r"\]", r"\\"]
    for _ in range(3000):
        prompt = "".join(random.choice(pieces, random.integers(1, 14)))
        (part,) = prompts.parse(prompt)
        text, weights = definition(prompt)
        assert "".join(text for text, _ in part) == text, prompt
        assert [w for text, w in part for _ in text] == pytest.approx(weights, abs=1e-8), prompt
        runs = [len(list(run)) for _, run in groupby(np.round(weights, 8))]
        assert [len(text) for text, _ in part] == runs, prompt  # each run is tokenized as a whole


@pytest.mark.parametrize("unit", [")", "()", "[[", "[]", ":", "(:1)", ": ", "\\", "BREAK ", "(a)[b]", "\0\ud800"])
@pytest.mark.parametrize("frame", ["{}", "(:{}", "(a:1{}", "[{}]"])
def test_absurd_prompts_are_read(unit, frame):
    assert prompts.parse(frame.format(unit * 50_000))


@pytest.mark.parametrize("prompt", ["(a:101)", "(a:-101)", "(" * 49 + "a", "(" * 200_000 + "a", f"(a:{'9' * 9999})"])
def test_absurd_weights_are_refused(prompt):
    with pytest.raises(ValueError, match=r"from -100 to 100\. Received: weight .* for 'a'"):
        prompts.parse(prompt)


# Chunks


def test_brackets_are_text_unless_asked():
    text = read("a (cat:1.3) BREAK \\(", prompt_weighting=False)
    assert text.tokens.shape == (1, 77)
    np.testing.assert_array_equal(text.weights, 1)
    expected = TOKENIZER.tokenize("a (cat:1.3) BREAK \\(", pad_token=END)
    np.testing.assert_array_equal(text.tokens, expected)


@pytest.mark.parametrize("shape", [SD14.text_encoder, SD21.text_encoder])
def test_tokens_and_weights(shape):
    text = read("a (black cat:1.3)", shape)
    tokens = [*words("a"), *words("black cat")]
    np.testing.assert_array_equal(text.tokens[0], [START, *tokens, END] + [shape.pad_token] * (75 - len(tokens)))
    np.testing.assert_allclose(text.weights[0], [1, 1, 1.3, 1.3] + [1] * 73)
    assert (text.tokens.dtype, text.weights.dtype) == ("int32", "float32")


@pytest.mark.parametrize(
    ("prompt", "lengths"),
    [
        ("", [0]),
        ("a " * 75, [75]),
        ("a " * 76, [75, 1]),
        ("a " * 160, [75, 75, 10]),
        ("a BREAK b b", [1, 2]),
        ("a " * 75 + "BREAK b", [75, 1]),
        ("a BREAK", [1]),
        ("BREAK a", [0, 1]),
        ("a BREAK BREAK b", [1, 0, 1]),
        ("BREAK", [0]),
        ("a " * 80 + "BREAK" + " b" * 80, [75, 5, 75, 5]),
    ],
)
def test_chunks(prompt, lengths):
    text = read(prompt, long_prompts="chunk")
    assert [list(row).index(END) - 1 for row in text.tokens] == lengths
    found = [token for row in text.tokens for token in row if token not in (START, END)]
    assert found == words(prompt.replace("BREAK", " "))


@pytest.mark.parametrize(
    ("before", "count", "lengths"),
    [(70, 10, [70, 10]), (65, 10, [75]), (66, 10, [66, 10]), (75, 3, [75, 3]), (74, 1, [75]), (0, 75, [75])],
)
def test_the_vectors_of_a_word_stay_together(before, count, lengths):
    tokenizer = SimpleTokenizer()
    tokenizer.add_tokens("<toy>", count)
    [text] = prompts.read("prompt", "a " * before + "<toy>", tokenizer, SD14.text_encoder, long_prompts="chunk")
    assert [list(row).index(END) - 1 for row in text.tokens] == lengths
    tokens = text.tokens[-1][1 : lengths[-1] + 1].tolist()
    assert tokens[-count:] == tokenizer.added_tokens["<toy>"]


def test_two_words_of_many_vectors_and_their_weights_stay_together():
    tokenizer = SimpleTokenizer()
    tokenizer.add_tokens(["<one>", "<two>"], 40)
    options = {"long_prompts": "chunk", "prompt_weighting": True}
    [text] = prompts.read("prompt", "<one> (<two>:1.5) <one>", tokenizer, SD14.text_encoder, **options)
    assert [list(row).index(END) - 1 for row in text.tokens] == [40, 40, 40]
    np.testing.assert_allclose(text.weights[:, 1:41], np.repeat([[1], [1.5], [1]], 40, axis=1))


def test_truncation_cuts_no_word(caplog):
    tokenizer = SimpleTokenizer()
    tokenizer.add_tokens("<toy>", 10)
    [text] = prompts.read("prompt", "a " * 70 + "<toy>", tokenizer, SD14.text_encoder, long_prompts="truncate")
    assert list(text.tokens[0]).index(END) - 1 == 70
    assert "ends before '<toy>'" in caplog.text


def test_breaks_need_no_permission():
    assert read("a BREAK b").tokens.shape == (2, 77)


def test_a_long_prompt_is_an_error_that_counts(caplog):
    with pytest.raises(ValueError, match=r"77 tokens, .* has 92\. .* from 'dog.* long_prompts='truncate' or 'chunk'"):
        read("a " * 75 + "dog " * 15)
    with pytest.raises(ValueError, match="this one has 78"):
        read("a BREAK" + " b" * 76)
    assert not caplog.records


def test_truncation_quotes_what_is_cut(caplog):
    text = read("(a " * 1 + "a " * 74 + "dog) BREAK b", long_prompts="truncate")
    assert [list(row).index(END) - 1 for row in text.tokens] == [75, 1]
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("keras_diffusion.prompts.reading", logging.WARNING)
    assert "ends before 'dog'" in record.getMessage()


def test_too_many_chunks_are_refused():
    with pytest.raises(ValueError, match="64 chunks of 75 tokens; this one has 65"):
        read("a " * (64 * 75 + 1), long_prompts="chunk")
    assert len(read("a " * (64 * 75), long_prompts="chunk").tokens) == 64


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("prompt_weighting", "yes", TypeError),
        ("prompt_weighting", 1, TypeError),
        ("prompt_weighting", None, TypeError),
        ("long_prompts", "cut", ValueError),
        ("long_prompts", None, ValueError),
        ("clip_skip", -1, ValueError),
        ("clip_skip", 12, ValueError),
        ("clip_skip", True, TypeError),
        ("clip_skip", 1.0, TypeError),
        ("clip_skip", None, TypeError),
    ],
)
def test_options_that_make_no_sense(option, value, error):
    with pytest.raises(error, match=f"`{option}` must be .* Received: {option}="):
        prompts.read("prompt", "a", TOKENIZER, SD14.text_encoder, **{option: value})


# Contexts

CONTEXT = np.random.default_rng(0).standard_normal((77, 16), "float32") + 0.1
WEIGHTS = np.r_[1, 1.3, 0.5, -1, np.ones(73)].astype("float32")


def test_emphasis_keeps_the_mean():
    expected = CONTEXT.astype("float64") * WEIGHTS[:, None]
    expected = expected * CONTEXT.mean() / expected.mean()
    found = prompts.emphasise(CONTEXT, WEIGHTS)
    assert found.dtype == "float32"
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert not np.allclose(found, CONTEXT * WEIGHTS[:, None], rtol=1e-2)


def test_no_emphasis_is_no_change():
    assert prompts.emphasise(CONTEXT, np.ones(77, "float32")) is CONTEXT


def test_a_mean_of_zero_is_not_restored():
    np.testing.assert_array_equal(prompts.emphasise(CONTEXT, np.zeros(77, "float32")), 0)
    centred = CONTEXT - CONTEXT.mean(-1, keepdims=True)
    np.testing.assert_array_equal(prompts.emphasise(centred, WEIGHTS), centred * WEIGHTS[:, None])


def attend(query, context):
    scores = np.exp(query @ context.T)
    return scores / scores.sum(-1, keepdims=True) @ context


def test_contexts_of_equal_length_are_attended_to_as_before():
    random = np.random.default_rng(1)
    query = random.standard_normal((5, 4))
    contexts = [random.standard_normal((n, 4)) for n in (77, 154, 231)]
    padded = prompts.repeat_to_one_length(*contexts)
    assert [context.shape for context in padded] == [(6 * 77, 4)] * 3
    for before, after in zip(contexts, padded, strict=True):
        np.testing.assert_allclose(attend(query, after), attend(query, before), rtol=1e-12)
    batch = prompts.repeat_to_one_length(np.stack([contexts[0]] * 2), contexts[1][None])
    assert [context.shape for context in batch] == [(2, 154, 4), (1, 154, 4)]
    np.testing.assert_array_equal(batch[0][1], np.concatenate([contexts[0]] * 2))


def test_contexts_that_would_become_too_long_are_refused():
    with pytest.raises(ValueError, match="Received: 539, 616, 693 tokens"):
        prompts.repeat_to_one_length(*(np.zeros((77 * k, 2)) for k in (7, 8, 9)))
