"""Draws noise from a seed: the same numbers on every backend, device and batch size.

The bits are those of Philox, a counter-based generator (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3") whose stream NumPy guarantees. Every image has one stream for its starting noise and one for each noise of the
sampler, so neither its place in a batch nor a later start shifts anything. Normal deviates are computed in float64 and
rounded to float32: platforms can differ only where the last bits of their log, sin or cos differ and a rounding turns
on them, which is about one number in 10**8, by one unit in its last place.
"""

import math
import secrets

import numpy as np

SEED_LIMIT = 2**63
STARTING = 0  # the stream of the starting noise; that of noise i is i + 1


def seeds(seed, batch_size):
    """Returns one seed for each image of a batch.

    Args:
        seed: int from 0 to 2**63 - 1, to which image i adds i; or a list with an int for each image; or None for a
            random one.
        batch_size: int, number of images.

    Returns:
        A list of `batch_size` ints.

    Raises:
        TypeError: If a seed is not an int.
        ValueError: If a seed is out of range, or their number is not `batch_size`.
    """
    if seed is None:
        seed = secrets.randbelow(2**32)
    if isinstance(seed, np.ndarray):
        seed = seed.tolist()
    if isinstance(seed, (list, tuple)):
        if len(seed) != batch_size:
            raise ValueError(f"Give one seed for each of the {batch_size} images. Received: {len(seed)} seeds")
        return [_checked(value, f"seed[{i}]") for i, value in enumerate(seed)]
    if _checked(seed, "seed") + batch_size > SEED_LIMIT:
        raise ValueError(f"Image i takes seed + i, and a seed is below 2**63. Received: {seed=}, {batch_size=}")
    return [int(seed) + i for i in range(batch_size)]


def _checked(seed, name):
    """Checks one seed."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"A seed must be an int from 0 to 2**63 - 1. Received: {name}={seed!r:.200}")
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"A seed must be from 0 to 2**63 - 1. Received: {name}={seed!r:.200}")
    return int(seed)


def starting_noise(seeds, shape):
    """Draws the noise that latents start from.

    Args:
        seeds: list of b ints, see `seeds`.
        shape: Shape of one latent, (h, w, c).

    Returns:
        float32 (b, h, w, c), normal with unit variance.
    """
    return np.stack([normal(seed, STARTING, shape) for seed in seeds])


def step_noise(seeds, shape, numbers, correlations=None):
    """Draws the fresh noise of some rows of a sampler's table.

    Args:
        seeds: list of b ints, see `seeds`.
        shape: Shape of one latent, (h, w, c).
        numbers: k ints, the numbers of the noises, counted from the sampler's first whether or not the run began there.
        correlations: k floats, that of each with the noise whose number is one less; None is 0.

    Returns:
        float32 (k, b, h, w, c), normal with unit variance.
    """
    correlations = np.zeros(len(numbers)) if correlations is None else correlations
    return np.stack([_correlated(seeds, shape, *row) for row in zip(numbers, correlations, strict=True)])


def row_noise(seeds, shape, table, rows):
    """Draws the fresh noise of the rows of a `samplers.Table` that have the indices `rows`; see `step_noise`."""
    return step_noise(seeds, shape, table.noises[rows], table.correlations[rows])


def _correlated(seeds, shape, number, correlation):
    """Draws the noise of a number, mixed with the noise before it."""
    noise = np.stack([normal(seed, number + 1, shape) for seed in seeds])
    if not correlation:
        return noise
    before = np.stack([normal(seed, number, shape) for seed in seeds])
    return (correlation * before + math.sqrt(1 - correlation**2) * noise).astype("float32")


def uniform(seed, stream, shape, purpose=0):
    """Draws numbers between 0 and 1.

    Args:
        seed: int from 0 to 2**63 - 1.
        stream: int from 0 to 2**64 - 1, such as the number of a training example.
        shape: Shape of the result.
        purpose: int from 0 to 2**64 - 1; the numbers of two purposes have nothing in common. 0 draws images.

    Returns:
        A float64 array in [0, 1).
    """
    return _uniform(seed, stream, math.prod(shape), purpose).reshape(shape)


def normal(seed, stream, shape, purpose=0):
    """Draws normal deviates of unit variance, see `uniform`.

    Pairs of uniform numbers become pairs of normal deviates (Box and Muller 1958).

    Returns:
        A float32 array.
    """
    size = math.prod(shape)
    first, second = _uniform(seed, stream, size + size % 2, purpose).reshape(2, -1)
    radius, angle = np.sqrt(-2 * np.log1p(-first)), 2 * np.pi * second
    deviates = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return deviates[:size].reshape(shape).astype("float32")


def _uniform(seed, stream, count, purpose):
    """Turns words of Philox into numbers of 53 bits; a purpose is a part of its counter far from the others."""
    philox = np.random.Philox(key=np.array([seed, stream], "uint64"), counter=np.array([0, 0, 0, purpose], "uint64"))
    return (philox.random_raw(count) >> np.uint64(11)) * 2.0**-53
