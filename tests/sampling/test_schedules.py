"""Noise schedules against diffusers', spacings by their definitions, levels by their identities."""

import json
from pathlib import Path

import numpy as np
import pytest

from keras_diffusion.sampling.schedules import noise_levels, noise_schedule

FIXTURE = np.load(Path(__file__).parents[1] / "golden" / "samplers.npz")


@pytest.mark.parametrize("i", range(len(FIXTURE["schedules"])))
def test_equals_diffusers(i):
    alphas_cumprod = noise_schedule(**json.loads(FIXTURE["schedules"][i]))
    np.testing.assert_allclose(alphas_cumprod[[0, 1, 30, -2, -1]], FIXTURE["alphas_cumprod"][i], rtol=1e-12, atol=1e-16)


def test_stable_diffusion_is_the_default():
    alphas_cumprod = noise_schedule()
    assert alphas_cumprod.shape == (1000,)
    assert alphas_cumprod.dtype == np.float64
    # KerasCV's own constants, first and last.
    np.testing.assert_allclose(alphas_cumprod[[0, 1, 2]], [0.99915, 0.998296, 0.9974381], rtol=2e-7)
    np.testing.assert_allclose(np.sqrt(1 / alphas_cumprod[[0, -1]] - 1), [0.0291672, 14.6146], rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"beta_schedule": "cubic"}, ValueError),
        ({"beta_schedule": None}, ValueError),
        ({"num_train_timesteps": 10**12}, ValueError),
        ({"num_train_timesteps": 1}, ValueError),
        ({"num_train_timesteps": 1000.0}, TypeError),
        ({"beta_end": 2.0}, ValueError),
        ({"beta_start": -0.1, "beta_schedule": "linear"}, ValueError),
        ({"beta_end": float("nan")}, ValueError),
        ({"trained_betas": [[0.1]]}, ValueError),
        ({"trained_betas": [0.1, 1.0]}, ValueError),
    ],
)
def test_bad_schedules(arguments, error):
    with pytest.raises(error, match="Received: "):
        noise_schedule(**arguments)


def test_levels_are_on_the_circle():
    levels = noise_levels(noise_schedule(), [999, 500.5, 0])
    np.testing.assert_allclose(levels.alphas**2 + levels.sigmas**2, 1)
    np.testing.assert_allclose(levels.sigmas[:-1] / levels.alphas[:-1], levels.ratios[:-1])
    assert (levels.alphas[-1], levels.sigmas[-1]) == (1, 0)
    assert levels.log_snrs[-1] == np.inf


def test_the_last_level_is_that_of_timestep_0_on_request():
    alphas_cumprod = noise_schedule()
    levels = noise_levels(alphas_cumprod, [999], ends_clean=False)
    np.testing.assert_allclose(levels.alphas**2, alphas_cumprod[[999, 0]])


def test_no_signal_at_all():
    levels = noise_levels(noise_schedule(rescale_betas_zero_snr=True), [999, 500])
    assert (levels.alphas[0], levels.sigmas[0]) == (0, 1)


def test_karras_levels():
    """Karras et al. 2022, equation 5: even steps in the seventh root of sigma."""
    levels = noise_levels(noise_schedule(), [999, 500, 0], spread="karras")
    roots = levels.ratios[:-1] ** (1 / 7)
    assert roots[1] == pytest.approx((roots[0] + roots[2]) / 2)
    assert (levels.timesteps[0], levels.timesteps[2]) == (pytest.approx(999), pytest.approx(0))
    whole = noise_levels(noise_schedule(), [800, 500, 300], "karras", "trained", whole_timesteps=True)
    np.testing.assert_allclose(whole.ratios, levels.ratios)
    np.testing.assert_array_equal(whole.timesteps, levels.timesteps.round())


def test_midpoints():
    levels = noise_levels(noise_schedule(), np.array([900, 400, 100]))
    fine = levels.with_between(np.sqrt(levels.ratios[:2] * levels.ratios[1:3]))
    np.testing.assert_array_equal(fine.ratios[[0, 2, 4, 5]], levels.ratios)
    np.testing.assert_allclose(fine.ratios[[1, 3]], np.sqrt(levels.ratios[:2] * levels.ratios[1:3]))
    assert 400 < fine.timesteps[1] < 900
    assert fine.timesteps[1] % 1


def test_visit():
    levels = noise_levels(noise_schedule(), [900, 400, 100])
    visited = levels.visit([0, 1, 1])
    np.testing.assert_array_equal(visited.timesteps, [900, 400, 400])
    np.testing.assert_array_equal(visited.ratios, levels.ratios[[0, 1, 1, 3]])
