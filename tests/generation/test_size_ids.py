"""The size ids of SDXL: what is taken unless given, for the prompt and the negative prompt."""

import numpy as np
import pytest

from keras_diffusion.architectures import SD15, SDXL, SDXL_REFINER
from keras_diffusion.generation.size_ids import added_vectors, read_size_ids
from keras_diffusion.networks.timesteps import timestep_embedding


@pytest.mark.parametrize(
    ("architecture", "options", "negative", "positive"),
    [
        (SDXL, {}, [64, 72, 0, 0, 64, 72], [64, 72, 0, 0, 64, 72]),
        (SDXL, {"crop": (1, 2), "target_size": None}, [64, 72, 1, 2, 64, 72], [64, 72, 1, 2, 64, 72]),
        (SDXL, {"negative_original_size": [5, 6]}, [5, 6, 0, 0, 64, 72], [64, 72, 0, 0, 64, 72]),
        (SDXL_REFINER, {}, [64, 72, 0, 0, 2.5], [64, 72, 0, 0, 6]),
        (SDXL_REFINER, {"aesthetic_score": 7}, [64, 72, 0, 0, 2.5], [64, 72, 0, 0, 7]),
        (SDXL_REFINER, {"negative_aesthetic_score": 1}, [64, 72, 0, 0, 1], [64, 72, 0, 0, 6]),
        (SD15, {}, [], []),
    ],
)
def test_what_is_not_given_is_as_usual(architecture, options, negative, positive):
    np.testing.assert_array_equal(read_size_ids(architecture, (64, 72), options), [negative, positive])


@pytest.mark.parametrize(
    ("architecture", "options", "error", "message"),
    [
        (SD15, {"crop": (0, 0)}, ValueError, "which are for SDXL. Received: crop"),
        (SDXL, {"negative_aesthetic_score": 1.0}, ValueError, "has original_size, crop, target_size"),
        (SDXL, {"crop": 3}, TypeError, "`crop` must be a pair"),
        (SDXL, {"crop": (0, -1)}, ValueError, "`crop.1.`"),
        (SDXL_REFINER, {"aesthetic_score": (1, 2)}, TypeError, "`aesthetic_score`"),
    ],
)
def test_refuses_what_is_none(architecture, options, error, message):
    with pytest.raises(error, match=message):
        read_size_ids(architecture, (64, 64), options)


def test_the_pooled_vector_comes_first():
    pooled = np.random.default_rng(0).standard_normal((2, 5), "float32")
    added = added_vectors(pooled, np.array([3, 900]), 8)
    np.testing.assert_array_equal(added[:, :5], pooled)
    np.testing.assert_array_equal(added[1, 5:], timestep_embedding([3, 900], 8).ravel())
