r"""Prompts: weights by brackets, chunks of tokens for the text encoder, and the contexts made of them.

    (word)              weight 1.1, and ((word)) 1.1²
    [word]              weight 1 / 1.1
    (word:1.3)          weight 1.3
    \( \) \[ \] \\      these characters themselves
    sky BREAK sea       a chunk for each

Brackets multiply. One that is not closed reaches to the end of the prompt; one that was not opened is text.

The definition is that of AUTOMATIC1111's stable-diffusion-webui 1.10: `prompt_parser.py`, `sd_hijack_clip.py` without
its way back to the last comma, and the "Original" emphasis of `sd_emphasis.py`. There a BREAK inside brackets is a word
of negative weight, and a weight such as 1.2.3 an exception; here the one breaks and the other is text.
"""

import logging
import math
import re
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.prompts.tags import TAG

LONG_PROMPTS = ("error", "truncate", "chunk")
LARGEST_WEIGHT = 100
LARGEST_CONTEXT = 64 * 77  # tokens

FACTORS = {"(": 1.1, "[": 1 / 1.1}
OPENING = {")": "(", "]": "["}
_GRAMMAR = re.compile(
    r"\\[()\[\]\\]?|[()\[\]]|:\s*(?P<weight>[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+))\s*\)|:|[^\\()\[\]:]+"
)
_BREAK = re.compile(r"\bBREAK\b")

logger = logging.getLogger(__name__)


class Text(NamedTuple):
    """A prompt that has been read: k chunks of n tokens.

    Args:
        tokens: int32 (k, n).
        weights: float32 (k, n).
        clip_skip: How many of the text encoder's last blocks to leave out.
        lengths: (k,), how many tokens of each chunk are not padding.
    """

    tokens: np.ndarray
    weights: np.ndarray
    clip_skip: int
    lengths: list

    def padded_with(self, pad_token):
        """Returns the tokens with another padding."""
        places = np.arange(self.tokens.shape[1])
        return np.where(places < np.reshape(self.lengths, (-1, 1)), self.tokens, np.int32(pad_token))


def read(name, prompts, tokenizer, shape, prompt_weighting=False, long_prompts="error", clip_skip=0):
    """Reads prompts as a text encoder takes them.

    Args:
        name: What error messages call the prompts.
        prompts: A str or a list of them.
        tokenizer: A `SimpleTokenizer`.
        shape: The `TextEncoderShape`.
        prompt_weighting: Whether brackets are weights and BREAK breaks; otherwise they are text like all else.
        long_prompts: What happens to a prompt of more tokens than the text encoder takes: "error"; "truncate", with a
            warning to this module's logger that quotes what is cut; or "chunk", where each chunk is encoded alone.
        clip_skip: How many of the text encoder's last blocks to leave out.

    Returns:
        A list of `Text`.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an option is out of its range, a weight is beyond -100 or 100, or a prompt is too long.
    """
    arguments.boolean("prompt_weighting", prompt_weighting)
    arguments.choice("long_prompts", long_prompts, LONG_PROMPTS)
    clip_skip = arguments.whole_number("clip_skip", clip_skip, 0, shape.layers - 1 - shape.penultimate)
    texts = []
    for prompt in arguments.texts(name, prompts):
        _mention_tags(name, prompt, prompt_weighting)
        parts = parse(prompt) if prompt_weighting else [[(prompt, 1.0)]]
        parts = [[(token, w) for text, w in part for token in tokenizer.encode(text)[1:-1]] for part in parts]
        chunks = _chunks(f"{name}={prompt!r:.200}", parts, tokenizer, shape.length - 2, long_prompts)
        tokens = np.full((len(chunks), shape.length), tokenizer.padding(shape.pad_token), "int32")
        weights = np.ones(tokens.shape, "float32")
        tokens[:, 0] = tokenizer.start_of_text
        for i, chunk in enumerate(chunks):
            tokens[i, 1 : len(chunk) + 1] = [token for token, _ in chunk]
            tokens[i, len(chunk) + 1] = tokenizer.end_of_text
            weights[i, 1 : len(chunk) + 1] = [weight for _, weight in chunk]
        texts.append(Text(tokens, weights, clip_skip, [len(chunk) + 2 for chunk in chunks]))
    return texts


def _mention_tags(name, prompt, prompt_weighting):
    """Says in a warning that <lora:name:1> and the like are words here, and refuses them where A1111 obeys them."""
    if not (found := TAG.search(prompt)):
        return
    if prompt_weighting and name == "prompt":
        raise ValueError(
            f"A prompt can name LoRAs in `text_to_image`, `image_to_image` and `inpaint` alone; here, load them with "
            f"`load_lora`, and leave out {found[0]}. Received: {name}={prompt!r:.200}"
        )
    reason = "in a negative prompt, as to A1111" if prompt_weighting else "unless prompt_weighting=True"
    logger.warning("%s is words %s. Received: %s=%.200r", found[0], reason, name, prompt)


def parse(prompt):
    """Reads the weights that a prompt gives to its words.

    Args:
        prompt: A str of any length, whatever is in it.

    Returns:
        A list for each part between BREAKs, of pairs (text, weight), in which neighbours have different weights.

    Raises:
        ValueError: If a weight is beyond -100 or 100.
    """
    parts, factors = [[]], {"(": [1.0], "[": [1.0]}  # of the brackets that are open
    for bracket, content in _events(prompt):
        if not bracket:
            weight = round(factors["("][-1] * factors["["][-1], 9)
            if not abs(weight) <= LARGEST_WEIGHT:
                raise ValueError(
                    f"Weights of words must be from -{LARGEST_WEIGHT} to {LARGEST_WEIGHT}. "
                    f"Received: weight {weight:g} for {content!r:.200}"
                )
            first, *others = _BREAK.split(content)
            parts[-1].append((first, weight))
            parts += [[(text, weight)] for text in others]
        elif content is None:
            factors[bracket].pop()
        else:
            factors[bracket].append(factors[bracket][-1] * content)
    return [
        [("".join(text for text, _ in run), weight) for weight, run in groupby(part, key=itemgetter(1))]
        for part in parts
    ]


def _events(prompt):
    """Splits a prompt into ("", text), and for brackets (bracket, factor) and (bracket, None)."""
    events, opened = [], {"(": [], "[": []}
    for match in _GRAMMAR.finditer(prompt):
        token, weight = match[0], match["weight"]
        closed = "(" if weight else OPENING.get(token)
        if token in opened:
            opened[token].append(len(events))
            events.append((token, FACTORS[token]))
        elif closed and opened[closed]:
            events[opened[closed].pop()] = closed, float(weight or FACTORS[closed])
            events.append((closed, None))
        else:
            events.append(("", token.removeprefix("\\")))
    return events


def _chunks(received, parts, tokenizer, room, long_prompts):
    """Cuts the tokens of each part into chunks of at most `room`."""
    chunks, starts = [], {tokens[0]: len(tokens) for tokens in tokenizer.added_tokens.values()}
    for part in parts:
        if len(part) > room and long_prompts != "chunk":
            kept = len(_cut(part, room, starts)[0])
            rest = tokenizer.decode([token for token, _ in part[kept : kept + room]]).strip()
            length = f"{room + 2} tokens, start and end of text included; this one has {len(part) + 2}"
            if long_prompts == "error":
                raise ValueError(
                    f"A prompt can have {length}. Leave out what does not fit, from {rest!r:.200} on, or "
                    f"choose long_prompts='truncate' or 'chunk'. Received: {received}"
                )
            logger.warning("A prompt can have %s: it ends before %.200r. Received: %s", length, rest, received)
            part = _cut(part, room, starts)[0]
        chunks += _cut(part, room, starts)
    if len(chunks) > 1 and not chunks[-1]:
        chunks.pop()  # after a BREAK at the end
    if len(chunks) * (room + 2) > LARGEST_CONTEXT:
        raise ValueError(
            f"A prompt can have {LARGEST_CONTEXT // (room + 2)} chunks of {room} tokens; this one has {len(chunks)}. "
            f"Received: {received}"
        )
    return chunks


def _cut(part, room, starts):
    """Cuts tokens into chunks of at most `room`, which keep the tokens of an added word together, as A1111 does.

    Args:
        part: A list of pairs (token, weight).
        room: How many a chunk holds; a word of more is cut.
        starts: A dict from the first token of each added word to the number of its tokens.
    """
    chunks, i = [[]], 0
    while i < len(part):
        word = part[i : i + min(starts.get(part[i][0], 1), room)]
        if len(chunks[-1]) + len(word) > room:
            chunks.append([])
        chunks[-1] += word
        i += len(word)
    return chunks


def emphasise(context, weights):
    """Multiplies each token's context by its weight, then all by the number that restores their mean.

    A mean that is rounding and no more, as that of an untrained network, is not restored.

    Args:
        context: float32 (n, d).
        weights: float32 (n,).

    Returns:
        A float32 array (n, d).
    """
    if (weights == 1).all():
        return context
    weighted = context * weights[:, None]
    before, after = context.mean(dtype="float64"), weighted.mean(dtype="float64")
    rounding = 1e-6 * np.abs(context).mean()
    return weighted * np.float32(before / after) if min(abs(before), abs(after)) > rounding else weighted


def repeat_to_one_length(*contexts):
    """Repeats contexts until all have the same number of tokens; attention computes the same from them.

    Args:
        *contexts: Arrays (..., n, d), each with its own n.

    Returns:
        A list of arrays (..., m, d), where m is the least common multiple.

    Raises:
        ValueError: If m is too large.
    """
    lengths = [context.shape[-2] for context in contexts]
    length = math.lcm(*lengths)
    if length > LARGEST_CONTEXT:
        raise ValueError(
            f"Contexts of so different lengths cannot be used together: their least common multiple must be at most "
            f"{LARGEST_CONTEXT} tokens. Draw images one at a time, or choose prompts of as many chunks. "
            f"Received: {', '.join(map(str, sorted(set(lengths))))} tokens"
        )
    return [np.tile(context, (length // n, 1)) for context, n in zip(contexts, lengths, strict=True)]
