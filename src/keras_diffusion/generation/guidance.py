"""Reads how much to follow the prompt: by negative prompts, or as a number that the network itself takes."""

import logging

import numpy as np

from keras_diffusion import arguments

logger = logging.getLogger(__name__)


def read_guidance(model, value, count):
    """Reads the guidance of each image: that by negative prompts, and that which the network takes itself or None.

    Below 1 it is KerasCV's formula, where diffusers takes the prompt alone.
    """
    guidance = arguments.numbers("unconditional_guidance_scale", value, count)
    if model.architecture.diffusion_model.guidance_width:
        return np.ones_like(guidance), guidance
    if (guidance < 1).any():
        logger.warning(
            "A guidance below 1 goes from the prompt towards the negative prompt. For the prompt alone, as diffusers "
            "takes guidance_scale=0, choose 1. Received: unconditional_guidance_scale=%g",
            guidance.min(),
        )
    return guidance, None


def require_no_other_guidance(prompt, negative_prompt, rescale, interval):
    """Refuses or names what changes nothing in a network that was distilled with its guidance."""
    given = {"guidance_rescale": rescale.any(), "guidance_interval": tuple(interval) != (0, 1)}
    given["AND"] = any(len(parts) > 1 or parts[0].weight != 1 for parts in prompt)
    if names := [name for name, is_given in given.items() if is_given]:
        raise ValueError(
            "This model was distilled with its guidance, as LCM: it compares a prompt with no other. "
            f"Leave out {', '.join(names)}. Received: {', '.join(names)}"
        )
    if negative_prompt is not None and not (isinstance(negative_prompt, str) and negative_prompt == ""):
        logger.warning("This model was distilled with its guidance, as LCM: a negative prompt changes nothing.")


def guidance_embedding(guidance, width):
    """Embeds guidance as sines and cosines of falling frequency.

    Source: Meng et al. 2022, "On distillation of guided diffusion models", arXiv:2210.03142; as LCM's pipeline in
    diffusers, `get_guidance_scale_embedding` of the guidance less 1, which is the paper's.

    Args:
        guidance: (b,) numbers, where 1 is without guidance.
        width: Number of values, at least 4, sines first; an odd number ends with a zero.

    Returns:
        A float32 array (b, width).
    """
    half = width // 2
    frequencies = np.exp(np.float32(-np.log(10000.0) / (half - 1)) * np.arange(half, dtype="float32"))
    angles = np.float32(1000) * (np.asarray(guidance, "float32") - 1)[:, None] * frequencies
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros((len(angles), width % 2), "float32")], axis=-1)
