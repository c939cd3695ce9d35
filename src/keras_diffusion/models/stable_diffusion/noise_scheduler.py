"""KerasCV's module of the noise schedule."""

import numpy as np
from keras import ops

from keras_diffusion.arguments import choice

SCHEDULES = {"linear": 1.0, "scaled_linear": 0.5}  # → the power of beta that grows by the same number in each step


class NoiseScheduler:
    """Adds noise to latents, for training (Ho et al. 2020, arXiv:2006.11239, equation 4).

    Args:
        train_timesteps: Number of timesteps.
        beta_start: The variance of the noise of the first one.
        beta_end: That of the last one.
        beta_schedule: How it grows between, "linear" or, as in Stable Diffusion, "scaled_linear".
    """

    def __init__(self, train_timesteps=1000, beta_start=0.0001, beta_end=0.02, beta_schedule="linear"):
        power = SCHEDULES[choice("beta_schedule", beta_schedule, tuple(SCHEDULES))]
        self.train_timesteps = train_timesteps
        self.timesteps = list(range(train_timesteps))[::-1]
        self.betas = np.linspace(beta_start**power, beta_end**power, train_timesteps) ** (1 / power)
        self.alphas = 1 - self.betas
        self.alphas_cumprod = np.cumprod(self.alphas)

    def __len__(self):
        return self.train_timesteps

    def add_noise(self, original_samples, noise, timesteps):
        """Mixes latents and noise.

        Args:
            original_samples: The latents, (b, h, w, c).
            noise: Unit noise of the same shape.
            timesteps: Whole numbers (b,), from 0.

        Returns:
            The mixture, (b, h, w, c), of the latents' dtype.
        """
        samples = ops.convert_to_tensor(original_samples)

        def shares(variances):
            table = ops.convert_to_tensor(variances**0.5, "float32")
            return ops.cast(ops.reshape(ops.take(table, timesteps), (-1, 1, 1, 1)), samples.dtype)

        signal, deviation = shares(self.alphas_cumprod), shares(1 - self.alphas_cumprod)
        return signal * samples + deviation * ops.cast(noise, samples.dtype)
