"""Noise on the way from one seed to another, and of a seed's own size: the arithmetic of A1111's modules/rng.py."""

import numpy as np
import pytest

from keras_diffusion.sampling import noise
from keras_diffusion.sampling.variation import image_seeds, seeds_alone, varied_noise

SHAPE = (8, 6, 4)


def test_each_column_of_each_channel_goes_along_a_great_circle():
    one, other = (noise.starting_noise([seed], SHAPE)[0].astype("float64") for seed in (3, 11))
    mixed = varied_noise([3], [11], 0.3, SHAPE)[0]
    for column in range(SHAPE[1]):
        for channel in range(SHAPE[2]):
            low, high = one[:, column, channel], other[:, column, channel]
            angle = np.arccos(low @ high / np.sqrt((low @ low) * (high @ high)))
            expected = (np.sin(0.7 * angle) * low + np.sin(0.3 * angle) * high) / np.sin(angle)
            np.testing.assert_allclose(mixed[:, column, channel], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(varied_noise([3], [11], 1.0, SHAPE)[0], other, atol=1e-6)
    np.testing.assert_array_equal(varied_noise([3], [3], 0.5, SHAPE), noise.starting_noise([3], SHAPE))


@pytest.mark.parametrize(
    ("size", "to", "taken"),  # the middle of one lies on the middle of the other; margins are rounded down
    [
        ((4, 6), (slice(2, 6), slice(0, 6)), (slice(0, 4), slice(0, 6))),
        ((5, 3), (slice(1, 6), slice(1, 4)), (slice(0, 5), slice(0, 3))),
        ((12, 9), (slice(0, 8), slice(0, 5)), (slice(2, 10), slice(2, 7))),
    ],
)
def test_noise_of_another_size_lies_in_the_middle(size, to, taken):
    found, around = varied_noise([5], [0], 0.0, SHAPE, size)[0], noise.starting_noise([5], SHAPE)[0]
    inner = noise.starting_noise([5], (*size, 4))[0]
    np.testing.assert_array_equal(found[to], inner[taken])
    around[to] = inner[taken]
    np.testing.assert_array_equal(found, around)


def test_varied_images_share_their_seed():
    assert image_seeds(7, 20, 0.1, 3) == ([7, 7, 7], [20, 21, 22])
    assert image_seeds(7, 20, 0, 3)[0] == [7, 8, 9]
    assert image_seeds([1, 5, 9], [4, 4, 4], 0.1, 3) == ([1, 5, 9], [4, 4, 4])
    assert len(set(image_seeds(None, 1, 0.1, 3)[0])) == 1
    call = {"seed": 7, "variation_seed": 20, "variation_strength": 0.1}
    assert seeds_alone(call, 2) == {"seed": 7, "variation_seed": 22}
    assert seeds_alone({"seed": 7}, 2) == {"seed": 9}
