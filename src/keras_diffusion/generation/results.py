"""Turns the latents of a call into what it returns."""

from functools import partial

import numpy as np
from PIL import Image

from keras_diffusion.images import previews
from keras_diffusion.images.safety import refuse_flagged


def decode_images(model, engine, request, latents):
    """Decodes latents, puts back what is not repainted, asks `safety`, and enlarges if the request asks for it.

    Args:
        model: The `StableDiffusion`.
        engine: Its `Engine`.
        request: The `Request`, whose output is images.
        latents: (b, h/f, w/f, c).

    Returns:
        A uint8 array (b, h, w, 3), or a list of PIL images if the request asks for them.

    Raises:
        FlaggedImagesError: If `safety` flags an image.
        NumericalError: If images are not finite.
    """
    drawn = engine.decode(model.tiny_decoder if request.tiny_vae else model.decoder, latents)
    if request.mask is not None:
        drawn = np.where(request.mask[..., None], drawn, request.pixels.round().astype("uint8"))
    if request.safety:
        refuse_flagged(request.safety, drawn)
    if request.upscale:
        drawn = request.upscale(drawn)
    return drawn if request.output == "array" else [Image.fromarray(image) for image in drawn]


def show_roughly(model, engine, latents):
    """Turns latents (b, h, w, c) into images at little cost: those of the tiny decoder, or one pixel for each place."""
    if model.tiny_decoder:
        return engine.decode(model.tiny_decoder, latents)
    return previews.preview(previews.fit(partial(engine.decode, model.decoder), latents.shape[-1]), latents)
