"""Draws a second time from the enlarged image, as A1111's "Hires. fix" does."""

from functools import partial

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.options import HiresOptions
from keras_diffusion.generation.refiner import make_parts
from keras_diffusion.generation.request import count_evaluations
from keras_diffusion.generation.upscaling import require_upscaler
from keras_diffusion.images.resizing import resize

LARGEST = 8
OF_THE_FIRST = ("diffusion_noise", "img_height", "img_width", *HiresOptions.__annotations__)


def make_passes(model, prompt, negative_prompt, batch_size, num_steps, guidance, seed, options):
    """Checks a call of `text_to_image`, and says what each of its passes draws.

    Args:
        model: The `StableDiffusion`.
        prompt: As all that follows, an argument of `text_to_image`.
        options: A dict of the options.

    Returns:
        A list of one pass, or of two if `hires` asks for it. A pass is what `make_parts` returns. The second lacks the
        images that it starts from, see `start_from`.

    Raises:
        TypeError, ValueError: As `make_parts`; also if `hires` is out of its range, or there is an image.
    """
    options = dict(options)
    hires, strength = options.pop("hires", None), options.pop("hires_strength", 0.5)
    upscaler = options.pop("hires_upscaler", None)
    if upscaler is not None and hires is None:
        raise ValueError("`hires_upscaler` needs `hires`, the factor. Received: hires_upscaler and no hires")
    given = negative_prompt, batch_size, num_steps, guidance
    parts = make_parts(model, "prompt", prompt, *given, seed, **options)
    if hires is None:
        return [parts]
    hires = arguments.number("hires", hires, 1, LARGEST)
    if options.get("image") is not None:
        raise ValueError("`hires` is for images that are drawn from noise alone. Received: hires and an image")
    _, request = parts[0]
    factor = model.architecture.autoencoder.factor
    size = [factor * int(side * hires) for side in request.noise.shape[1:3]]
    options = {name: value for name, value in options.items() if name not in OF_THE_FIRST}
    options |= {"image": np.zeros((*size, 3), "uint8"), "strength": strength}
    options["passed"] = count_evaluations(options.get("sampler") or model.sampler, request.table)
    given = negative_prompt, len(request.seeds), num_steps, guidance
    again = make_parts(model, "prompt", prompt, *given, request.seeds, **options)
    enlarge = None
    if upscaler is not None:
        enlarge = partial(require_upscaler("hires_upscaler", upscaler).enlarge_to, size=size)
    first = {"output": "array", "safety": None, "upscale": enlarge}
    return [[(each, part._replace(**first)) for each, part in parts], again]


def start_from(parts, images):
    """Returns the parts of a second pass, which start from images (b, h, w, 3), uint8, scaled to its size."""
    size = parts[0][1].pixels.shape[1:3]
    pixels = resize(images, size).clip(0, 255)
    return [(each, part._replace(pixels=pixels)) for each, part in parts]
