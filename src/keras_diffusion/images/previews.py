"""Cheap pictures of latents: the affine map from latents to colours that is nearest to a decoder."""

import numpy as np

from keras_diffusion.sampling.noise import starting_noise

AREAS, SIDE = 16, 2  # plain areas to learn from: together as much to decode as a 64×64 image


def fit(decode, channels):
    """Learns the colours that a decoder gives to plain areas, by least squares.

    Args:
        decode: Function of float32 latents (b, h, w, channels) that returns images (b, f · h, f · w, 3) in 0…255.
        channels: How many the latents have.

    Returns:
        A float64 array (channels + 1, 3) for `preview`, the constant colour last.
    """
    colours = starting_noise(range(AREAS), (1, 1, channels))
    images = decode(np.tile(colours, (1, SIDE, SIDE, 1)))
    affine = np.column_stack([colours.reshape(AREAS, channels), np.ones(AREAS)])
    return np.linalg.lstsq(affine, images.mean((1, 2), dtype="float64"), rcond=None)[0]


def preview(fitted, latents):
    """Latents (b, h, w, c) → small images, uint8 (b, h, w, 3), by what `fit` returned."""
    return (latents @ fitted[:-1] + fitted[-1]).round().clip(0, 255).astype("uint8")
