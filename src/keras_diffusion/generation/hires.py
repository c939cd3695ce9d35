"""Draws a second time from the enlarged image, as A1111's "Hires. fix" with the upscaler Lanczos does."""

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.generation.options import HiresOptions
from keras_diffusion.generation.refiner import make_parts
from keras_diffusion.generation.request import count_evaluations
from keras_diffusion.images.resizing import resize

LARGEST = 8
OF_THE_FIRST = ("diffusion_noise", "img_height", "img_width", *HiresOptions.__annotations__)


def draw(model, prompt, negative_prompt, batch_size, num_steps, guidance, seed, options):
    """Draws images of a call of `text_to_image`, once, or twice where `hires` asks for it.

    Args:
        model: The `StableDiffusion`.
        prompt: As all that follows, an argument of `text_to_image`.
        options: A dict of the options.

    Returns:
        What the option `output` says.
    """
    options = dict(options)
    hires, strength = options.pop("hires", None), options.pop("hires_strength", 0.5)
    given = negative_prompt, batch_size, num_steps, guidance
    parts = make_parts(model, "prompt", prompt, *given, seed, **options)
    if hires is None:
        return model._draw(parts)
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
    again = make_parts(model, "prompt", prompt, *given, request.seeds, **options)  # before anything is drawn
    first = model._draw([(each, part._replace(output="array", safety=None)) for each, part in parts])
    pixels = resize(first, size).clip(0, 255)
    return model._draw([(each, part._replace(pixels=pixels)) for each, part in again])
