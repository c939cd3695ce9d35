"""Encodes what a request asks for: its prompts, image and controls as arrays for the engine."""

import numpy as np

from keras_diffusion.engines.stages import Conditions
from keras_diffusion.generation.controls import follow, residual_shares
from keras_diffusion.generation.guidance import guidance_embedding
from keras_diffusion.generation.image_prompts import encode_image_prompts
from keras_diffusion.generation.size_ids import added_vectors
from keras_diffusion.generation.texts import EncodedText, encode, stack
from keras_diffusion.prompts.reading import repeat_to_one_length


def encode_start(model, engine, request):
    """The latents of the image that a request starts from, float32 (b, h/f, w/f, c), or None."""
    return request.latents if request.pixels is None else _encode_pixels(model, engine, request, request.pixels)


def starting_latents(request, known):
    """The latents of the first row: noise, or an image and the noise that belongs to that row.

    Args:
        request: A `Request` for b images.
        known: What `encode_start` returns.

    Returns:
        A float32 array (b, h/f, w/f, c).
    """
    table = request.table
    if known is None or (request.mask is not None and table.steps[0] == 0):
        return np.float32(table.initial_scale) * request.noise
    return np.float32(table.alphas[0]) * known + np.float32(table.sigmas[0]) * request.noise


def make_conditions(model, engine, request, known):
    """Encodes what the latents of a request are drawn from.

    Args:
        model: The `StableDiffusion`.
        engine: Its `Engine`.
        request: A `Request` for b images.
        known: What `encode_start` returns.

    Returns:
        `Conditions`, and the `texts` of a `Plan`: None, or the contexts of the rows.
    """
    count, height, width, channels = request.noise.shape
    factor = model.architecture.autoencoder.factor
    mask, shape, embedded = request.mask, model.architecture.diffusion_model, request.embedded_guidance
    weights, columns = arrange(request)
    guided = len(columns) > max(map(len, request.prompt))
    images = encode_image_prompts(engine, request.image_prompts, shape, count, (height, width), len(columns), guided)
    pairs, which = _encode_columns(model, engine, request, columns)
    context, added = pairs[0]
    shares = None
    if request.controls:
        rows = count * len(columns)
        shares = residual_shares(shape, request.guess_mode, count * guided, rows)
    result = Conditions(
        context,
        request.guidance,
        added=added,
        weights=weights,
        rescale=request.rescale if request.rescale.any() else None,
        controls=tuple(x for control in request.controls for x in follow(engine, control)),
        shares=shares,
        images=images,
        guidance_embedding=None if embedded is None else guidance_embedding(embedded, shape.guidance_width),
    )
    texts = (pairs, which) if len(pairs) > 1 else None
    if shape.in_channels > channels:  # a model for inpainting sees what is known
        everywhere = np.ones((count, factor * height, factor * width), bool)
        drawn, pixels = (everywhere, np.zeros(3)) if mask is None else (mask, request.pixels)
        rest = _encode_pixels(model, engine, request, np.where(drawn[..., None], 127.5, pixels))
        seen = np.concatenate([cover_cells(drawn, factor).astype("float32"), rest], axis=-1)
        return result._replace(extra=seen), texts
    if mask is None:
        return result, texts
    return result._replace(drawn=cover_cells(mask, factor), known=known, noise=request.noise), texts


def arrange(request):
    """Arranges the parts of prompts by the rows of a batch that they take.

    Args:
        request: A `Request` for b images.

    Returns:
        float32 (k, b), the weights of k parts for each image, or None where each prompt is one part of weight 1. And a
        list of columns, each a pair: 1 or b parts, and their size ids. The first are the negative prompts, if they are
        needed; k follow for the prompts, of which those of fewer parts repeat the first with weight 0.
    """
    most = max(map(len, request.prompt))
    padded = [[*parts, *[parts[0]._replace(weight=0.0)] * (most - len(parts))] for parts in request.prompt]
    columns = [*zip(*padded, strict=True)]
    weights = np.array([[part.weight for part in column] for column in columns], "float32")
    composed = most > 1 or (weights != 1).any()
    negative, ids = request.size_ids
    columns = [(column, ids) for column in columns]
    if composed or (request.guidance != 1.0).any():
        columns.insert(0, ([part for (part,) in request.negative], negative))
    return (np.broadcast_to(weights, (most, len(request.guidance))) if composed else None), columns


def _encode_columns(model, engine, request, columns):
    """Encodes what columns take in any row: a list of pairs (context, added), and which of them each row takes."""
    rows, count = request.first + np.arange(len(request.table.rows)), len(request.guidance)
    parts = [part for column, _ in columns for part in column]
    states, which = np.unique([part.at(rows) for part in parts], axis=1, return_inverse=True)
    texts = {id(part.texts[i]): part.texts[i] for part, taken in zip(parts, states, strict=True) for i in taken}
    encoded = {key: encode(model, engine, text) for key, text in texts.items()}
    contexts = repeat_to_one_length(*(text.context for text in encoded.values()))
    encoded = {
        key: text._replace(context=context) for (key, text), context in zip(encoded.items(), contexts, strict=True)
    }
    pairs, width = [], model.architecture.diffusion_model.id_width
    for state in states.T:
        taken = iter([encoded[id(part.texts[i])] for part, i in zip(parts, state, strict=True)])
        stacked = [(_repeated(stack([next(taken) for _ in column]), count), ids) for column, ids in columns]
        added = [added_vectors(text.pooled, ids, width) for text, ids in stacked if len(ids)]
        context = np.concatenate([text.context for text, _ in stacked])
        pairs.append((context, np.concatenate(added) if added else None))
    return pairs, which.reshape(-1)


def _encode_pixels(model, engine, request, pixels):
    """Pixels (b, h, w, 3) in [0, 255] → latents (b, h/f, w/f, c)."""
    encoder = (request.tiny_vae and model.tiny_image_encoder) or model.image_encoder
    return engine.encode_image(encoder, pixels / 127.5 - 1.0)


def _repeated(encoded, count):
    """Repeats what is encoded once for all of `count` images; one for each stays."""
    return EncodedText(*(None if x is None else np.resize(x, (count, *x.shape[1:])) for x in encoded))


def cover_cells(mask, factor):
    """Which latents are drawn, bool (b, h/f, w/f, 1): those with any pixel that is, of a mask (b, h, w)."""
    count, height, width = mask.shape
    return mask.reshape(count, height // factor, factor, width // factor, factor).any(axis=(2, 4))[..., None]
