"""A1111's prompts that change between steps or are joined: texts by its definition."""

import logging

import pytest

from keras_diffusion.architectures import SD14
from keras_diffusion.prompts import composing
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

TOKENIZER = SimpleTokenizer()


def texts(prompt, evaluations=4):
    """What a prompt says in each evaluation, from 1 on."""
    pieces = composing.changes(prompt, evaluations)
    return [composing.text_at(pieces, i + 1) for i in range(evaluations)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [  # the doctests of A1111's prompt_parser.py for 10 steps, and what its grammar makes of other prompts
        ("test", {10: "test"}),
        ("a [b:3]", {3: "a ", 10: "a b"}),
        ("a [b: 3 ]", {3: "a ", 10: "a b"}),
        ("a [[[b]]:2]", {2: "a ", 10: "a [[b]]"}),
        ("[(a:2):3]", {3: "", 10: "(a:2)"}),
        ("a [b : c : 1] d", {1: "a b  d", 10: "a  c  d"}),
        ("a[b:[c:d:2]:1]e", {1: "abe", 2: "ace", 10: "ade"}),
        ("a [unbalanced", {10: "a [unbalanced"}),
        ("a [b:.5] c", {5: "a  c", 10: "a b c"}),
        ("a [b::0.25]", {2: "a b", 10: "a "}),
        ("((a][:b:c [d:3]", {3: "((a][:b:c ", 10: "((a][:b:c d"}),
        (r"\[a:3\] [b\:c:3]", {3: r"\[a:3\] ", 10: r"\[a:3\] b\:c"}),
        ("[a:0] [b::-1] [c:99] [d:1.5]", {10: "a   "}),
        ("[a:b] (c:d:1) [e:x:1:2]", {10: "[a:b] (c:d:1) [e:x:1:2]"}),
        ("[a:1e0]", {1: "", 10: "a"}),
        ("a [b:3]\\", {10: "a [b:3]\\"}),  # text as a whole
        ("a | [b:3]", {10: "a | [b:3]"}),
    ],
)
def test_a_prompt_changes_where_a1111_changes_it(prompt, expected):
    spans = zip([0, *expected], expected.items(), strict=False)

    assert texts(prompt, 10) == [text for start, (end, text) in spans for _ in range(end - start)]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a|(b:1.1)]", ["a", "(b:1.1)"] * 2),
        ("[fe|]male", ["female", "male"] * 2),
        ("[fe|||]male", ["female", "male", "male", "male"]),
        ("[[a|b]:c:3]", ["a", "b", "a", "c"]),
        ("[a:b:2] [c|d]", ["a c", "a d", "b c", "b d"]),
    ],
)
def test_texts_take_turns(prompt, expected):
    assert texts(prompt) == expected


@pytest.mark.parametrize("prompt", ["[" * 50_000, "[a:" * 20_000, "[" * 20_000 + "]" * 20_000, "[a|b] " * 5_000])
def test_reading_takes_no_more_than_seconds(prompt):
    assert texts(prompt, 1) == [prompt.replace("[a|b]", "a")]


def test_changes_are_not_too_deep_inside_each_other():
    prompt = "a"
    for _ in range(21):
        prompt = f"[{prompt}:b:1]"

    assert texts(prompt[1:-5], 1) == ["a"]
    with pytest.raises(ValueError, match="20 deep inside each other"):
        texts(prompt)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a cat AND a dog", [("a cat ", 1), (" a dog", 1)]),
        ("a cat :1.2 AND a dog: -.5 AND b: 2. AND c:d", [("a cat ", 1.2), (" a dog", -0.5), (" b", 2), (" c:d", 1)]),
        ("SAND and (b:1.2)", [("SAND and (b:1.2)", 1)]),
    ],
)
def test_and_joins_prompts(prompt, expected):
    assert composing.split_parts(prompt) == expected


def test_a_number_at_the_end_is_a_weight_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert composing.split_parts("a photo, 16:9") == [("a photo, 16", 9)]
    assert "weight of the whole prompt" in caplog.text
    for wrong, message in (("a:101", "from -100 to 100"), (" AND ".join("abcdefghijklmnopq"), "Received: 17 prompts")):
        with pytest.raises(ValueError, match=message):
            composing.split_parts(wrong)


def test_without_weighting_and_in_negative_prompts_there_are_words():
    def read(name, prompt, **options):
        return composing.read(name, prompt, TOKENIZER, SD14.text_encoder, **options)

    for parts in (read("prompt", "a [b:1] AND c"), read("negative_prompt", "a AND c", prompt_weighting=True)):
        [[part]] = parts
        assert part.at([0, 1, 99]).tolist() == [0, 0, 0]
    [[negative]] = read("negative_prompt", "a [b:1]", prompt_weighting=True, evaluations=3)
    assert [negative.texts[i].lengths for i in negative.at([0, 1, 2, 3, 99])] == [[3], [3], [4], [4], [4]]
    for prompt in ("[a:1]", "a AND b", "a:2"):
        with pytest.raises(ValueError, match="call `text_to_image`"):
            read("prompt", prompt, prompt_weighting=True)
