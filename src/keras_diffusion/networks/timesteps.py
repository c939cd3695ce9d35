"""Embeds timesteps as numbers that a diffusion model reads."""

import numpy as np


def timestep_frequencies(width):
    """Returns the frequencies of `timestep_embedding`, float32 (width // 2,)."""
    half = width // 2
    return np.exp(np.float32(-np.log(10000.0)) * np.arange(half, dtype="float32") / np.float32(half))


def timestep_embedding(timesteps, width):
    """Embeds timesteps as cosines and sines of falling frequency.

    Source: `timestep_embedding` in ldm/modules/diffusionmodules/util.py; maximum period 10000, computed in float32
    as there.

    Args:
        timesteps: (n,) numbers in [0, 999].
        width: Even number of frequencies, cosines first.

    Returns:
        A float32 array (n, width).
    """
    angles = np.asarray(timesteps, "float32")[:, None] * timestep_frequencies(width)
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
