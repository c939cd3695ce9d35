"""Reads prompts, or takes what is encoded already, and encodes them by all text encoders of a model."""

import logging
from typing import NamedTuple

import keras
import numpy as np

from keras_diffusion import arguments
from keras_diffusion.prompts import composing
from keras_diffusion.prompts.reading import emphasise, repeat_to_one_length
from keras_diffusion.prompts.vocabulary import unlearned

logger = logging.getLogger(__name__)

TOKEN_EMBEDDING = "embeddings_token_embedding"  # the layer's name


class EncodedText(NamedTuple):
    """Holds what the text encoders of SDXL return for prompts.

    Args:
        context: float32 (b, k · 77, width), the outputs of all text encoders side by side.
        pooled: float32 (b, width), a vector of the whole prompt; None for a model that takes none.
    """

    context: np.ndarray
    pooled: np.ndarray | None = None


def read(model, name, value, **options):
    """Lists prompts that have been read, 1 or more: a list of `composing.Part` each, of texts or of an `EncodedText`.

    Args:
        model: The `StableDiffusion`.
        name: What to call the prompts in errors; "encoded_text" is encoded already, "negative_prompt" may be.
        value: What was given.
        **options: Those of `composing.read`.

    Raises:
        TypeError, ValueError: If the value is none of these, or an option is out of its range.
    """
    shapes, second = model.architecture.text_encoders.values(), model.architecture.text_encoder_2
    shape = min(shapes, key=lambda shape: shape.layers)
    size = (shape.length, sum(shape.width for shape in shapes))
    if name == "negative_prompt" and value is None:
        if model.architecture.zero_negative:
            zeros = EncodedText(np.zeros(size, "float32"), np.zeros(second.projection, "float32"))
            return [composing.constant(zeros)]
        value = ""
    encoded = hasattr(value, "shape") or isinstance(value, EncodedText)
    if name != "encoded_text" and not (name == "negative_prompt" and encoded):
        return composing.read(name, value, model.tokenizer, shape, **options)
    if not second:
        return [composing.constant(EncodedText(context)) for context in arguments.context(name, value, size)]
    if not isinstance(value, EncodedText):
        raise TypeError(f"`{name}` must be an EncodedText, from `encode_text`. Received: {value!r:.200}")
    contexts = arguments.context(f"{name}.context", value.context, size)
    pooled = arguments.array(f"{name}.pooled", np.atleast_2d(value.pooled), (len(contexts), second.projection))
    return [composing.constant(EncodedText(*pair)) for pair in zip(contexts, pooled, strict=True)]


def encode_prompts(model, engine, prompts):
    """Encodes prompts that have been read and do not change, and stacks them.

    Returns:
        An `EncodedText`.
    """
    return stack([encode(model, engine, part.texts[0]) for (part,) in prompts])


def stack(encoded):
    """Stacks the `EncodedText` of several prompts in one."""
    contexts, pooled = zip(*encoded, strict=True)
    return EncodedText(np.stack(repeat_to_one_length(*contexts)), None if pooled[0] is None else np.stack(pooled))


def encode(model, engine, prompt):
    """Encodes one text: the context (k · 77, width), and the pooled vector of the last text encoder.

    Every chunk is encoded alone: none depends on its neighbours. The pooled vector is that of the first chunk. An
    `EncodedText` is returned as it is.
    """
    if isinstance(prompt, EncodedText):
        return prompt
    contexts, pooled = [], None
    for name, shape in model.architecture.text_encoders.items():
        tokens, network = prompt.padded_with(model.tokenizer.padding(shape.pad_token)), getattr(model, name)
        _warn_of_unlearned_words(network, model.tokenizer, prompt)
        outputs = [engine.encode(network, row[None], prompt.clip_skip) for row in tokens]
        chunks, *vectors = zip(*map(keras.tree.flatten, outputs), strict=True)
        contexts.append(np.concatenate([emphasise(x, w) for (x,), w in zip(chunks, prompt.weights, strict=True)]))
        pooled = vectors[0][0][0] if vectors else None
    return EncodedText(np.concatenate(contexts, axis=-1), pooled)


def _warn_of_unlearned_words(text_encoder, tokenizer, text):
    """Names in a warning the words whose embeddings are zero: no caption of the training had them."""
    embed = next((layer for layer in text_encoder.layers if layer.name == TOKEN_EMBEDDING), None)
    if embed is None:  # a network of one's own
        return
    learned = np.any(keras.ops.convert_to_numpy(keras.ops.take(embed.embeddings, text.tokens, axis=0)), axis=-1)
    words = {}
    for row, known, length in zip(text.tokens, learned, text.lengths, strict=True):
        words |= dict.fromkeys(unlearned(tokenizer, row[1 : length - 1], known[1 : length - 1]))
    if words:
        logger.warning("The model has not learned %s; use other words.", ", ".join(f'"{word}"' for word in words))
