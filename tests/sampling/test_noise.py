"""The noise of a seed: its numbers, its distribution, and that nothing else has a part in it."""

import math

import numpy as np
import pytest

from keras_diffusion.sampling import noise

SHAPE = (8, 6, 4)


def near(actual, expected):
    """Equal but for the last bit, which the platform's log, sin and cos may decide."""
    np.testing.assert_allclose(actual, np.float32(expected), rtol=2e-7)


def test_golden_values():
    near(noise.starting_noise([42], (2, 2, 1)).ravel(), [1.2481474, -0.51077724, -1.3689148, 0.39835522])
    near(
        noise.step_noise([2**63 - 1], (2, 2, 1), [0, 5]).ravel(),
        [0.40971032, -0.8108244, -0.13575158, 0.6490153, -0.4788662, -0.06375963, -1.369352, -1.5654981],
    )


def test_bits_are_philox():
    """The first word of the stream, in our own reading of Box and Muller."""
    first, _, second, _ = np.random.Philox(key=np.array([7, 0], "uint64")).random_raw(4).tolist()
    radius = np.sqrt(-2 * np.log1p(-(first >> 11) / 2**53))
    near(noise.starting_noise([7], (2, 2, 1))[0, 0, 0], [radius * np.cos(2 * np.pi * (second >> 11) / 2**53)])


def test_shapes_and_types():
    starting = noise.starting_noise([1, 2], SHAPE)
    steps = noise.step_noise([1, 2], SHAPE, np.array([4, 9, 9]))
    assert starting.dtype == steps.dtype == np.float32
    assert starting.shape == (2, *SHAPE)
    assert steps.shape == (3, 2, *SHAPE)
    assert noise.starting_noise([1], (3, 1, 1)).shape == (1, 3, 1, 1)


def test_an_image_of_a_batch_is_the_image_alone():
    batch = noise.seeds(100, 3)
    for i, seed in enumerate([100, 101, 102]):
        np.testing.assert_array_equal(noise.starting_noise(batch, SHAPE)[i], noise.starting_noise([seed], SHAPE)[0])
        np.testing.assert_array_equal(
            noise.step_noise(batch, SHAPE, [0, 7])[:, i], noise.step_noise([seed], SHAPE, [0, 7])[:, 0]
        )


def test_a_step_is_the_same_wherever_the_run_began():
    np.testing.assert_array_equal(
        noise.step_noise([5], SHAPE, range(10))[6:], noise.step_noise([5], SHAPE, range(6, 10))
    )


def test_streams_are_unrelated():
    size = 20_000
    streams = [noise.starting_noise([seed], (size,))[0] for seed in (0, 1, 2**32, 2**62)]
    streams += [step[0] for step in noise.step_noise([0], (size,), (0, 1, 2**20))]
    correlation = np.corrcoef(streams)
    assert np.abs(correlation - np.eye(len(streams))).max() < 5 / np.sqrt(size)


def test_noise_is_normal():
    sample = noise.starting_noise(range(8), (64, 64, 4)).astype("float64").ravel()
    size = len(sample)
    assert abs(sample.mean()) < 4 / np.sqrt(size)
    assert abs(sample.std() - 1) < 4 / np.sqrt(2 * size)
    assert abs((sample**3).mean()) < 4 * np.sqrt(15 / size)
    assert abs((sample**4).mean() - 3) < 4 * np.sqrt(96 / size)
    # Kolmogorov and Smirnov, at the level of one in a thousand.
    erf = np.vectorize(math.erf)
    expected = (1 + erf(np.sort(sample) / np.sqrt(2))) / 2
    assert np.abs(expected - (np.arange(size) + 0.5) / size).max() < 1.95 / np.sqrt(size)


def test_seeds():
    assert noise.seeds(0, 1) == [0]
    assert noise.seeds(5, 3) == [5, 6, 7]
    assert noise.seeds([9, 2**63 - 1], 2) == [9, 2**63 - 1]
    assert noise.seeds((3,), 1) == [3]
    assert noise.seeds(np.array([4, 4]), 2) == [4, 4]
    assert noise.seeds(np.int64(8), 1) == [8]
    assert noise.seeds(2**63 - 2, 2) == [2**63 - 2, 2**63 - 1]
    first, second = noise.seeds(None, 2)
    assert second == first + 1
    assert noise.seeds(None, 1) != noise.seeds(None, 1)


@pytest.mark.parametrize("seed", [True, 1.0, "1", [1, 2.0], [True, 1], np.array([1.0, 2.0]), {}, b"1"])
def test_seeds_of_another_type(seed):
    with pytest.raises(TypeError, match=r"must be an int from 0 to 2\*\*63 - 1\. Received: seed"):
        noise.seeds(seed, 2)


@pytest.mark.parametrize("seed", [-1, 2**63, 10**4000, [0, -1], [1], [1, 2, 3], [], 2**63 - 1])
def test_seeds_out_of_range(seed):
    with pytest.raises(ValueError, match="Received: ") as error:
        noise.seeds(seed, 2)
    assert len(str(error.value)) < 400


def test_the_message_names_the_seed_of_a_list():
    with pytest.raises(ValueError, match=r"Received: seed\[1\]=-7"):
        noise.seeds([3, -7], 2)


def test_purposes_are_unrelated_and_the_first_draws_images():
    np.testing.assert_array_equal(noise.normal(3, 0, SHAPE), noise.starting_noise([3], SHAPE)[0])
    first, second = (noise.uniform(3, 0, (20_000,), purpose) for purpose in (0, 1))
    assert 0 <= first.min() < first.max() < 1
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.03
    assert second.mean() == pytest.approx(0.5, abs=0.01)
