"""Spacings by their definitions; diffusers' and scipy's values."""

import numpy as np
import pytest

from keras_diffusion.sampling import spacings
from keras_diffusion.sampling.samplers import build
from keras_diffusion.sampling.schedules import noise_schedule, training_ratios
from keras_diffusion.sampling.spacings import LEVEL_SPACINGS, SPACINGS, SPREADS

RATIOS = training_ratios(noise_schedule())


@pytest.mark.parametrize(
    ("spacing", "num_steps", "reserve", "expected"),
    [
        ("leading", 4, 0, [751, 501, 251, 1]),
        ("leading", 3, 0, [667, 334, 1]),
        ("leading", 3, 1, [751, 501, 251]),
        ("trailing", 4, 0, [999, 749, 499, 249]),
        ("trailing", 3, 1, [999, 666, 332]),
        ("linspace", 4, 0, [999, 666, 333, 0]),
        ("linspace", 3, 0, [999, 499.5, 0]),
        ("linspace", 3, 1, [999, 666, 333]),
        ("linspace", 1, 0, [0]),
        ("keras_cv", 3, 0, [999, 500, 0]),
        ("keras_cv", 1, 0, [0]),
        ("lcm", 4, 0, [999, 759, 499, 259]),
    ],
)
def test_spacings(spacing, num_steps, reserve, expected):
    np.testing.assert_array_equal(SPACINGS[spacing](1000, num_steps, reserve, 1), expected)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("reserve", [0, 1])
def test_every_count_gives_that_many_different_timesteps(spacing, reserve):
    for num_steps in [*range(1, 130), 201, 457, 500, 501, 998, 999, 1000]:
        timesteps = SPACINGS[spacing](1000, num_steps, reserve, 1).round()
        assert len(timesteps) == num_steps
        assert (np.diff(timesteps) < 0).all(), num_steps
        assert timesteps[0] <= 999
        assert timesteps[-1] >= 0


def test_timestep_of_a_level():
    ratios = np.sqrt(1 / noise_schedule() - 1)
    np.testing.assert_allclose(spacings.timestep_of(ratios[[3, 700]], ratios), [3, 700])
    assert spacings.timestep_of(np.sqrt(ratios[3] * ratios[4]), ratios) == pytest.approx(3.5)


@pytest.mark.parametrize("spread", SPREADS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 50, 1000])
def test_spreads_fall_from_the_first_to_the_last(spread, num_steps):
    ratios = SPREADS[spread](14.0, 0.03, num_steps)
    assert len(ratios) == num_steps
    assert (np.diff(ratios) < 0).all()
    np.testing.assert_allclose(ratios[0], 14)
    np.testing.assert_allclose(ratios[-1], 14 if num_steps == 1 else 0.03, rtol=1e-9)


def test_exponential_and_beta_by_hand():
    np.testing.assert_allclose(SPREADS["exponential"](16.0, 1.0, 3), [16, 4, 1])
    # scipy.stats.beta.ppf([1, 0.75, 0.5, 0.25, 0], 0.6, 0.6)
    expected = [1, 0.82431962, 0.5, 0.17568038, 0]
    np.testing.assert_allclose(SPREADS["beta"](1.0, 0.0, 5), expected, atol=1e-7)


@pytest.mark.parametrize(
    ("spacing", "num_steps", "timesteps"),
    [
        ("normal", 4, [999, 666, 333, 0]),
        ("sgm_uniform", 3, [999, 666, 333]),
        ("simple", 3, [999, 666, 333]),
        ("simple", 7, [999, 857, 714, 571, 428, 285, 142]),
        ("ddim_uniform", 4, [751, 501, 251, 1]),
        ("ddim_uniform", 7, [995, 853, 711, 569, 427, 285, 143, 1]),  # one more, as in ComfyUI
    ],
)
def test_level_spacings(spacing, num_steps, timesteps):
    np.testing.assert_allclose(build("euler", num_steps, spacing=spacing).rows[:, 0], timesteps, atol=1e-9)


@pytest.mark.parametrize("spacing", LEVEL_SPACINGS)
def test_level_spacings_fall_and_end_clean(spacing):
    for num_steps in (1, 2, 3, 10, 50, 1000):
        for sampler in ("euler", "ddim", "dpmpp_2m", "deis"):
            table = build(sampler, num_steps, spacing=spacing)
            assert table.alphas[-1] == 1
            assert (np.diff(table.sigmas) < 0).all()


def test_align_your_steps_are_the_published_levels():
    ratios = LEVEL_SPACINGS["align_your_steps"](RATIOS, 10)
    np.testing.assert_allclose(ratios, [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152])
    assert len(LEVEL_SPACINGS["align_your_steps"](RATIOS, 25)) == 25


def test_kl_optimal_divides_angles():
    angles = np.arctan(LEVEL_SPACINGS["kl_optimal"](RATIOS, 5))
    np.testing.assert_allclose(np.diff(angles), np.diff(angles)[0])
