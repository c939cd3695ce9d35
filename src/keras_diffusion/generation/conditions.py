"""What the latents of a call are drawn from: a plan's prompts, picture and controls as arrays for the engine."""

import numpy as np

from keras_diffusion.engines.stages import Conditions
from keras_diffusion.prompts.reading import equally_long


def conditions(plan, known, architecture, encode_text, encode_image):
    """Encodes what a plan asks for.

    Args:
        plan: A `Plan` for b images.
        known: The latents of its picture, float32 (b, h, w, c), or None.
        architecture: The model's `Architecture`.
        encode_text: Function of a plan's prompts, 1 or b of them, that returns their context, (1 or b, n, d).
        encode_image: Function of pixels, (b, factor · h, factor · w, 3) in [0, 255], that returns their latents.

    Returns:
        `Conditions`.
    """
    count, height, width, channels = plan.noise.shape
    factor = architecture.autoencoder.factor
    context = _repeated(encode_text(plan.prompt), count)
    if (plan.guidance != 1.0).any():
        context = np.concatenate(equally_long(_repeated(encode_text(plan.negative), count), context))
    result = Conditions(context, plan.guidance, plan.rescale if plan.rescale.any() else None)
    if plan.controls:
        result = result._replace(controls=tuple(control.image for control in plan.controls))
    if architecture.diffusion_model.in_channels > channels:  # a model for inpainting sees what is known
        mask = np.ones((count, factor * height, factor * width), bool) if plan.mask is None else plan.mask
        rest = np.where(mask[..., None], 127.5, np.zeros(3) if plan.mask is None else plan.image)
        extra = np.concatenate([_cells(mask, factor).astype("float32"), encode_image(rest)], axis=-1)
        return result._replace(extra=extra)
    if plan.mask is None:
        return result
    return result._replace(drawn=_cells(plan.mask, factor), known=known, noise=plan.noise)


def _repeated(context, count):
    """The context of each of `count` images: one for all, or one for each."""
    return np.resize(context, (count, *context.shape[1:]))


def _cells(mask, factor):
    """Which latents are drawn, bool (b, h/f, w/f, 1): those with any pixel that is, of a mask (b, h, w)."""
    count, height, width = mask.shape
    return mask.reshape(count, height // factor, factor, width // factor, factor).any(axis=(2, 4))[..., None]
