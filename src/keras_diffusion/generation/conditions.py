"""Encodes what a request asks for: its prompts, image and controls as arrays for the engine."""

import numpy as np

from keras_diffusion.engines.stages import Conditions
from keras_diffusion.generation.size_ids import added_vectors
from keras_diffusion.generation.texts import EncodedText, encode_prompts
from keras_diffusion.prompts.reading import repeat_to_one_length


def encode_start(model, engine, request):
    """The latents of the image that a request starts from, float32 (b, h/f, w/f, c), or None."""
    return request.latents if request.pixels is None else _encode_pixels(model, engine, request.pixels)


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
        `Conditions`.
    """
    count, height, width, channels = request.noise.shape
    factor = model.architecture.autoencoder.factor
    mask = request.mask
    guided = (request.guidance != 1.0).any()
    prompts = [request.negative, request.prompt] if guided else [request.prompt]
    texts = [_repeated(encode_prompts(model, engine, prompt), count) for prompt in prompts]
    id_width = model.architecture.diffusion_model.id_width
    ids = request.size_ids[-len(texts) :]
    added = [added_vectors(text.pooled, row, id_width) for text, row in zip(texts, ids, strict=True) if len(row)]
    result = Conditions(
        np.concatenate(repeat_to_one_length(*(text.context for text in texts))),
        request.guidance,
        added=np.concatenate(added) if added else None,
        rescale=request.rescale if request.rescale.any() else None,
        controls=tuple(control.image for control in request.controls),
    )
    if model.architecture.diffusion_model.in_channels > channels:  # a model for inpainting sees what is known
        everywhere = np.ones((count, factor * height, factor * width), bool)
        drawn, pixels = (everywhere, np.zeros(3)) if mask is None else (mask, request.pixels)
        rest = _encode_pixels(model, engine, np.where(drawn[..., None], 127.5, pixels))
        return result._replace(extra=np.concatenate([cover_cells(drawn, factor).astype("float32"), rest], axis=-1))
    if mask is None:
        return result
    return result._replace(drawn=cover_cells(mask, factor), known=known, noise=request.noise)


def _encode_pixels(model, engine, pixels):
    """Pixels (b, h, w, 3) in [0, 255] → latents (b, h/f, w/f, c)."""
    return engine.encode_image(model.image_encoder, pixels / 127.5 - 1.0)


def _repeated(encoded, count):
    """Repeats what is encoded once for all of `count` images; one for each stays."""
    return EncodedText(*(None if x is None else np.resize(x, (count, *x.shape[1:])) for x in encoded))


def cover_cells(mask, factor):
    """Which latents are drawn, bool (b, h/f, w/f, 1): those with any pixel that is, of a mask (b, h, w)."""
    count, height, width = mask.shape
    return mask.reshape(count, height // factor, factor, width // factor, factor).any(axis=(2, 4))[..., None]
