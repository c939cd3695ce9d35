"""Varies the noise of a seed, as A1111 does under "Extra" beside the seed.

Source: `slerp` and `ImageRNG` in modules/rng.py and `process_images_inner` in modules/processing.py of AUTOMATIC1111's
stable-diffusion-webui 1.10. The noise itself is that of `noise`, not A1111's.
"""

import numpy as np

from keras_diffusion.sampling import noise

NEARLY_EQUAL = 0.9995  # the mean cosine of noise that is mixed linearly


def image_seeds(seed, variation_seed, strength, count):
    """Returns the seeds and the variation seeds of the images of a call, two lists of ints.

    Images that are varied share a `seed` that is an int, so that all of them are near one image.

    Args:
        seed: See `noise.seeds`.
        variation_seed: Likewise.
        strength: How much the images are varied; at 0 the second list means nothing.
        count: Number of images.
    """
    one = strength and not isinstance(seed, list | tuple | np.ndarray)
    return noise.seeds(seed, 1) * count if one else noise.seeds(seed, count), noise.seeds(variation_seed, count)


def seeds_alone(call, i):
    """Returns the arguments that draw image i of a call alone: `seed`, and `variation_seed` if the call varies it."""
    if call.get("variation_strength"):
        return {"seed": call["seed"], "variation_seed": call["variation_seed"] + i}
    return {"seed": call["seed"] + i}


def varied_noise(seeds, others, strength, shape, size=None):
    """Draws the noise that latents start from, on the way from that of some seeds to that of others.

    Args:
        seeds: List of b ints.
        others: List of b ints.
        strength: How far to go, 0 to 1.
        shape: Shape of one latent, (h, w, c).
        size: (h, w) of the latents that the noise is drawn for. It is then cut or continued on all sides, so that an
            image of another size keeps its composition. None takes that of `shape`.

    Returns:
        float32 (b, h, w, c), normal with unit variance.
    """
    drawn = (*(size or shape[:2]), shape[-1])
    mixed = noise.starting_noise(seeds, drawn)
    if strength:
        pairs = zip(mixed, noise.starting_noise(others, drawn), strict=True)
        mixed = np.stack([slerp(strength, *pair) for pair in pairs])
    if drawn == tuple(shape):
        return mixed
    around = noise.starting_noise(seeds, shape)
    rows, columns = (_overlap(*sides) for sides in zip(shape[:2], drawn[:2], strict=True))
    around[:, rows[0], columns[0]] = mixed[:, rows[1], columns[1]]
    return around


def slerp(share, one, other):
    """Interpolates noise (h, w, c) along great circles; A1111 takes each column of each channel for a vector."""
    one, other = one.astype("float64"), other.astype("float64")
    cosine = (_unit(one) * _unit(other)).sum(axis=0)
    if cosine.mean() > NEARLY_EQUAL:
        return (share * one + (1 - share) * other).astype("float32")
    angle = np.arccos(cosine.clip(-1, 1))
    mixed = np.sin((1 - share) * angle) * one + np.sin(share * angle) * other
    return (mixed / np.sin(angle)).astype("float32")


def _unit(x):
    return x / np.linalg.norm(x, axis=0)


def _overlap(wanted, drawn):
    """Where the middle of a side of `drawn` places comes to lie in `wanted` ones, and what is taken: two slices."""
    margin = (wanted - drawn) // 2  # rounded down, as A1111 does
    length = drawn if margin >= 0 else drawn + 2 * margin
    to, start = max(margin, 0), max(-margin, 0)
    return slice(to, to + length), slice(start, start + length)
