"""Defines what a diffusion model learns: its input, its target, and the weight of each timestep.

A noisy latent is alpha · latents + sigma · noise, where alpha² = alphas_cumprod and sigma² = 1 - alphas_cumprod.
"""

import numpy as np
from keras import ops

TARGETS = {  # prediction type → the target; the velocity is that of Salimans and Ho 2022, arXiv:2202.00512, appendix D
    "epsilon": lambda latents, noise, alpha, sigma: noise,
    "v_prediction": lambda latents, noise, alpha, sigma: alpha * noise - sigma * latents,
    "sample": lambda latents, noise, alpha, sigma: latents,
}
MIN_SNR = {  # prediction type → min(SNR, γ) over the SNR of its own loss, without a division by the SNR
    "epsilon": lambda signal, gamma: np.minimum(1.0, gamma * (1 - signal) / np.maximum(signal, 1e-300)),
    "v_prediction": lambda signal, gamma: np.minimum(signal, gamma * (1 - signal)),
    "sample": lambda signal, gamma: np.minimum(signal / np.maximum(1 - signal, 1e-300), gamma),
}


def levels(alphas_cumprod):
    """Returns the shares of signal and noise, (alpha, sigma), float32 (b, 1, 1, 1), of `alphas_cumprod` (b,)."""
    signal = np.reshape(alphas_cumprod, (-1, 1, 1, 1))
    return np.sqrt(signal).astype("float32"), np.sqrt(1 - signal).astype("float32")


def noisy(latents, noise, alpha, sigma):
    """Mixes latents and noise, both (b, h, w, c)."""
    return alpha * latents + sigma * noise


def target(prediction_type, latents, noise, alpha, sigma):
    """Returns what the network should predict, (b, h, w, c).

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
        latents: (b, h, w, c), clean.
        noise: (b, h, w, c), of unit variance.
        alpha: (b, 1, 1, 1), see `levels`.
        sigma: (b, 1, 1, 1).
    """
    return TARGETS[prediction_type](latents, noise, alpha, sigma)


def min_snr_weights(prediction_type, alphas_cumprod, gamma=5.0, floor=0.0):
    """Weights the loss of each timestep so that no noise level dominates.

    Source: Hang et al. 2023, arXiv:2303.09556, section 3.4; for velocities their min(SNR, γ) / (SNR + 1). At a timestep
    without signal, where SNR is 0, the weight is the limit: 1 for the noise, 0 for the velocity and the sample.

    Args:
        prediction_type: "epsilon", "v_prediction" or "sample".
        alphas_cumprod: (n,), the share of signal in the variance, from 0 to 1.
        gamma: The largest SNR that counts in full.
        floor: The least weight. Above 0, a velocity is learned at zero terminal SNR too.

    Returns:
        A float32 array (n,).
    """
    weights = MIN_SNR[prediction_type](np.asarray(alphas_cumprod, "float64"), gamma)
    return np.maximum(weights, floor).astype("float32")


def mean_squared_error(prediction, target, weights):
    """Returns the mean over a batch of each image's mean squared error times its weight, in float32.

    Args:
        prediction: (b, h, w, c), of any precision.
        target: (b, h, w, c), float32.
        weights: (b,), float32.
    """
    errors = ops.square(ops.cast(prediction, "float32") - ops.convert_to_tensor(target))
    return ops.mean(ops.convert_to_tensor(weights) * ops.mean(errors, axis=(1, 2, 3)))


def pseudo_huber(prediction, target, weights, width=1e-3):
    """Returns the mean over a batch of each image's mean pseudo-Huber loss times its weight, in float32.

    Args:
        prediction: (b, h, w, c), of any precision.
        target: (b, h, w, c), float32.
        weights: (b,), float32.
        width: Where squares become magnitudes, as LCM's authors have it.
    """
    errors = ops.square(ops.cast(prediction, "float32") - ops.convert_to_tensor(target))
    errors = ops.sqrt(errors + width**2) - width
    return ops.mean(ops.convert_to_tensor(weights) * ops.mean(errors, axis=(1, 2, 3)))
