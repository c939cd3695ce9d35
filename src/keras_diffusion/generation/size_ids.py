"""The sizes that an image of SDXL is said to have: numbers that the diffusion model was trained with beside the prompt.

Source: Podell et al. 2023, arXiv:2307.01952, section 2.2; diffusers' `_get_add_time_ids`.
"""

from itertools import chain

import numpy as np

from keras_diffusion import arguments
from keras_diffusion.networks.timesteps import timestep_embedding

LARGEST = 2**16
NEGATIVE = "negative_"
SCORES = {"aesthetic_score": 6.0, "negative_aesthetic_score": 2.5}  # unless given


def read_size_ids(architecture, size, options):
    """Checks the size ids of a call.

    Args:
        architecture: The `Architecture`, whose `size_ids` are their names.
        size: (height, width) of the images, in pixels.
        options: A dict of those that are given, also with "negative_" before their names; None is not given.

    Returns:
        A float32 array (2, k): the numbers for the negative prompt, then those for the prompt.

    Raises:
        TypeError: If one is of the wrong type.
        ValueError: If one is out of its range, or the model has none of this name.
    """
    names, options = architecture.size_ids, {name: value for name, value in options.items() if value is not None}
    if unknown := [name for name in options if name.removeprefix(NEGATIVE) not in names]:
        known = f"has {', '.join(names)}" if names else "has no size ids, which are for SDXL"
        raise ValueError(f"This model {known}. Received: {', '.join(unknown)}")
    usual = {"original_size": size, "crop": (0, 0), "target_size": size, **SCORES}
    chosen = {name: _numbers(name, value, usual[name.removeprefix(NEGATIVE)]) for name, value in options.items()}
    chosen = {name: _numbers(name, value, value) for name, value in usual.items()} | chosen
    negative = [chosen.get(NEGATIVE + name, chosen[name]) for name in names]
    return np.array([list(chain(*ids)) for ids in (negative, [chosen[name] for name in names])], "float32")


def added_vectors(pooled, ids, width):
    """Joins pooled vectors (b, p) and size ids (k,) into what the diffusion model takes, float32 (b, p + k · width)."""
    embedded = timestep_embedding(ids, width).reshape(1, -1)
    return np.concatenate([pooled, np.repeat(embedded, len(pooled), axis=0)], axis=-1)


def _numbers(name, value, like):
    """The numbers of an option: of a pair or of one number, as the usual value is."""
    if not isinstance(like, tuple):
        return [arguments.number(name, value, 0, LARGEST)]
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"`{name}` must be a pair of numbers. Received: {name}={value!r:.200}")
    return [arguments.number(f"{name}[{i}]", number, 0, LARGEST) for i, number in enumerate(value)]
