r"""Reads what changes a prompt between steps, and what joins several prompts.

    [sky:sea:0.5]       sky for half of the steps, then sea; [sky:sea:5] for 5 steps
    [sky:0.5]           nothing for half of the steps, then sky
    [sky::5]            sky for 5 steps, then nothing
    [sky|sea]           sky and sea in turns
    sky AND sea:0.8     guided by both, each with a weight (Liu et al. 2022, arXiv:2206.01714, equation 11)

What changes may stand within other brackets and other changes; \[ \] \( \) are these characters. Whatever does not fit
the grammar is text.

The definition is that of AUTOMATIC1111's stable-diffusion-webui 1.10, `prompt_parser.py`. It counts evaluations of the
network from 0, of which some samplers need two in a step, and takes the text of the first one twice. In a negative
prompt AND is a word.
"""

import logging
import re
from itertools import chain, groupby
from typing import NamedTuple

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.prompts import reading

LARGEST_DEPTH = 20
MOST_PARTS = 16

OPENING = {")": "(", "]": "["}
CLOSING = {opening: closing for closing, opening in OPENING.items()}
_TOKEN = re.compile(r"[\[\]():|]|(?:[^\\\[\]():|]|\\.)+")
_WHEN = re.compile(r"\s*([+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)\s*")
_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r"[+-]?(?:[0-9]+\.?|[0-9]*\.[0-9]+)")

logger = logging.getLogger(__name__)


class Part(NamedTuple):
    """A prompt, or what stands between two ANDs of it.

    Args:
        weight: How much it counts.
        texts: The texts that it becomes, one or more of what a text encoder takes, such as `reading.Text`.
        order: int (n,), which of them each evaluation of the network takes; the last holds for all after it.
    """

    weight: float
    texts: list
    order: np.ndarray

    def at(self, evaluations):
        """Returns which text each of these evaluations takes."""
        return self.order[np.minimum(evaluations, len(self.order) - 1)]


class Change(NamedTuple):
    """One of several texts, by the evaluation.

    Args:
        options: A list for each text, of str and `Change`.
        last: The last evaluation that takes the first of two options, or None for turns.
        depth: How many changes are inside each other.
    """

    options: list
    last: int | None
    depth: int

    def at(self, evaluation):
        turn = evaluation - 1 if self.last is None else evaluation > self.last
        return text_at(self.options[turn % len(self.options)], evaluation)


def constant(text):
    """Returns the parts of a prompt that is one text in all evaluations."""
    return [Part(1.0, [text], np.zeros(1, int))]


def read(name, prompts, *given, prompt_weighting=False, evaluations=None, passed=0, **options):
    """Reads prompts as a text encoder takes them.

    Args:
        name: What error messages call the prompts; if it is "prompt", AND joins them.
        prompts: A str or a list of them.
        *given: The tokenizer and the shape, see `reading.read`.
        prompt_weighting: Whether brackets and AND have a meaning.
        evaluations: How many times the network is asked, or None if that is not known.
        passed: How many times it was asked before, in a first pass over a smaller image.
        **options: The other options of `reading.read`.

    Returns:
        A list of a list of `Part` for each prompt.

    Raises:
        TypeError, ValueError: As `reading.read`; also if a prompt changes or is joined where `evaluations` is None, or
            has too many parts.
    """
    if prompt_weighting is not True:
        return [*map(constant, reading.read(name, prompts, *given, prompt_weighting=prompt_weighting, **options))]
    found = []
    for prompt in arguments.texts(name, prompts):
        split = split_parts(prompt) if name == "prompt" else [(prompt, 1.0)]
        changing = [changes(text, evaluations or 1, passed) for text, _ in split]
        if evaluations is None and (len(split) > 1 or split[0][1] != 1 or any(map(_has_change, changing))):
            raise ValueError(
                f"Only what draws can follow AND and what changes between steps, such as [a:b:0.5]; call "
                f"`text_to_image`. Received: {name}={prompt!r:.200}"
            )
        parts = []
        for (_, weight), pieces in zip(split, changing, strict=True):
            last = (evaluations or 0) if _has_change(pieces) else 0
            texts, order = np.unique([text_at(pieces, max(i, 1)) for i in range(last + 1)], return_inverse=True)
            texts = reading.read(name, texts.tolist(), *given, prompt_weighting=True, **options)
            parts.append(Part(weight, texts, order))
        found.append(parts)
    return found


def split_parts(prompt):
    """Splits a prompt at each AND.

    Args:
        prompt: A str.

    Returns:
        A list of pairs (text, weight).

    Raises:
        ValueError: If there are too many, or a weight is too large.
    """
    parts = []
    for text in _AND.split(prompt):
        before, _, number = text.rpartition(":")
        weighted = _WEIGHT.fullmatch(number.strip()) if ":" in text else None
        parts.append((before, float(number)) if weighted else (text, 1.0))
    if len(parts) > MOST_PARTS or not all(abs(weight) <= reading.LARGEST_WEIGHT for _, weight in parts):
        raise ValueError(
            f"AND can join {MOST_PARTS} prompts, with weights from -{reading.LARGEST_WEIGHT} to "
            f"{reading.LARGEST_WEIGHT}. Received: {len(parts)} prompts with weights "
            f"{', '.join(f'{weight:g}' for _, weight in parts[: 2 * MOST_PARTS])}"
        )
    if len(parts) == 1 and parts[0][1] != 1:
        logger.warning(
            "The number at the end is the weight of the whole prompt, as to A1111. Received: prompt=%.200r", prompt
        )
    return parts


def changes(prompt, evaluations, passed=0):
    """Finds what changes in a prompt.

    Args:
        prompt: A str, whatever is in it.
        evaluations: How many times the network is asked.
        passed: How many times it was asked in a first pass: whole numbers count on from there, and fractions from 1.

    Returns:
        A list of str and `Change`.

    Raises:
        ValueError: If too many changes are inside each other.
    """
    tokens, groups = _TOKEN.findall(prompt), [_Group("")]
    if sum(map(len, tokens)) < len(prompt):  # a backslash at the end
        return [prompt]
    for token in tokens:
        group = groups[-1]
        if token in "[(":
            groups.append(_Group(token))
        elif token in ":|" and len(groups) > 1:
            group.separators.append(token)
            group.options.append([])
        elif token in OPENING:
            closed = group.close(evaluations, passed) if group.bracket == OPENING[token] else None
            if closed:
                groups.pop()
                groups[-1].options[-1] += closed
            elif _any_bar(groups):
                return [prompt]
            else:
                groups = _as_text(groups)
                groups[0].options[-1].append(token)
        elif token == "|":
            return [prompt]
        else:
            group.options[-1].append(token)
    return [prompt] if _any_bar(groups) else _as_text(groups)[0].pieces()


def text_at(pieces, evaluation):
    """Returns what pieces say in an evaluation of the network, counted from 1."""
    return "".join(piece if isinstance(piece, str) else piece.at(evaluation) for piece in pieces)


class _Group:
    """Holds the options between two brackets, and the separators between the options."""

    def __init__(self, bracket):
        self.bracket, self.options, self.separators = bracket, [[]], []

    def pieces(self):
        """Everything as text, apart from changes."""
        first, *others = self.options
        rest = [[separator, *option] for separator, option in zip(self.separators, others, strict=True)]
        return _joined([self.bracket, *first, *chain(*rest)])

    def close(self, evaluations, passed):
        """The pieces that a closed group becomes, or None if its brackets are text after all."""
        kinds = set(self.separators)
        if not kinds or (self.bracket == "(" and self.separators == [":"]):
            return _joined([*self.pieces(), CLOSING[self.bracket]])
        if self.bracket == "[" and kinds == {"|"}:
            return [_change(self.options, None)]
        *options, when = self.options
        number = _WHEN.fullmatch(text_at(when, 1)) if not _has_change(when) else None
        if self.bracket == "(" or kinds != {":"} or len(options) > 2 or not number:
            return None
        last = float(number[1])
        last = (last - bool(passed)) * evaluations if "." in number[1] else last - passed
        return [_change([[], *options][-2:], int(min(evaluations, last)))]


def _joined(pieces):
    """The pieces with neighbouring texts made one."""
    runs = groupby(pieces, key=lambda piece: isinstance(piece, str))
    return [piece for texts, run in runs for piece in (["".join(run)] if texts else run)]


def _any_bar(groups):
    """Tells whether a bar stands in an open group: with its bracket as text, the grammar has no place for it."""
    return any("|" in group.separators for group in groups)


def _as_text(groups):
    """The outermost group alone, with all brackets that are open in it as text."""
    for group in groups[1:]:
        groups[0].options[-1] += group.pieces()
    return groups[:1]


def _has_change(pieces):
    return any(isinstance(piece, Change) for piece in pieces)


def _change(options, last):
    depth = 1 + max((piece.depth for option in options for piece in option if isinstance(piece, Change)), default=0)
    if depth > LARGEST_DEPTH:
        raise ValueError(f"Changes like [a:b:0.5] can be {LARGEST_DEPTH} deep inside each other. Received: {depth}")
    return Change(options, last, depth)
