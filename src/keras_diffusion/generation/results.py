"""Turns the latents of a call into what it returns."""

import numpy as np
from PIL import Image

from keras_diffusion.images.safety import refuse_flagged


def decode_images(engine, decoder, request, latents):
    """Decodes latents, puts back what is not repainted, and asks `safety`.

    Args:
        engine: The `Engine`.
        decoder: The `Decoder`.
        request: The `Request`, whose output is images.
        latents: (b, h/f, w/f, c).

    Returns:
        A uint8 array (b, h, w, 3), or a list of PIL images if the request asks for them.

    Raises:
        FlaggedImagesError: If `safety` flags an image.
        NumericalError: If images are not finite.
    """
    drawn = engine.decode(decoder, latents)
    if request.mask is not None:
        drawn = np.where(request.mask[..., None], drawn, request.pixels.round().astype("uint8"))
    if request.safety:
        refuse_flagged(request.safety, drawn)
    return drawn if request.output == "array" else [Image.fromarray(image) for image in drawn]
