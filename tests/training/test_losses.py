"""What a diffusion model learns: targets, and the weights of timesteps at both ends of the schedule."""

import numpy as np
import pytest

from keras_diffusion.sampling.schedules import noise_schedule
from keras_diffusion.training import losses


def test_targets_lead_back_to_the_latents():
    latents, noise = np.random.default_rng(0).standard_normal((2, 3, 2, 2, 4)).astype("float32")
    alpha, sigma = losses.levels([0.9, 0.5, 0.0])
    x = losses.noisy(latents, noise, alpha, sigma)
    epsilon, velocity, sample = (losses.target(name, latents, noise, alpha, sigma) for name in losses.TARGETS)
    np.testing.assert_array_equal(x[2], noise[2])
    np.testing.assert_allclose(x - sigma * epsilon, alpha * latents, atol=1e-6)
    np.testing.assert_allclose(alpha * x - sigma * velocity, latents, atol=1e-6)
    np.testing.assert_array_equal(sample, latents)


@pytest.mark.parametrize("prediction_type", losses.TARGETS)
def test_min_snr(prediction_type):
    signal = noise_schedule()
    snr = signal / (1 - signal)
    own = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    weights = losses.min_snr_weights(prediction_type, signal, gamma=5.0)
    np.testing.assert_allclose(weights, np.minimum(snr, 5) / own, rtol=1e-6)


def test_min_snr_without_signal_and_without_noise():
    ends = [0.0, 1.0]
    expected = {"epsilon": [1, 0], "v_prediction": [0, 0], "sample": [0, 5]}
    for name, weights in expected.items():
        np.testing.assert_array_equal(losses.min_snr_weights(name, ends), weights)
    zero_snr = noise_schedule(rescale_betas_zero_snr=True)
    assert losses.min_snr_weights("v_prediction", zero_snr, floor=0.1)[-1] == np.float32(0.1)


@pytest.mark.backend
def test_mean_squared_error():
    prediction, target = np.ones((2, 1, 1, 2), "float16"), np.zeros((2, 1, 1, 2), "float32")
    prediction[1] = 3
    assert float(losses.mean_squared_error(prediction, target, np.float32([1, 0.5]))) == pytest.approx((1 + 4.5) / 2)


@pytest.mark.backend
def test_pseudo_huber():
    """As in diffusers' train_lcm_distill_lora_sd_wds.py: sqrt(d² + c²) - c with c = 0.001."""
    prediction, target = np.zeros((2, 1, 1, 2), "float32"), np.zeros((2, 1, 1, 2), "float32")
    prediction[0], prediction[1, ..., 0] = 0.001, -2
    expected = (0.001 * (2**0.5 - 1) + 0.5 * (4.000001**0.5 - 0.001) / 2) / 2
    assert float(losses.pseudo_huber(prediction, target, np.float32([1, 0.5]))) == pytest.approx(expected, rel=1e-4)
