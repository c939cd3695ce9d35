"""Computes the noise schedule that a model was trained with, and the noise levels that a sampler visits.

A noisy latent is `alpha * denoised + sigma * noise` with `alpha² + sigma² = 1`. Samplers count noise by the ratio
`sigma / alpha`, which k-diffusion calls sigma. Everything is NumPy in float64.
"""

from dataclasses import dataclass

import numpy as np

from keras_diffusion.arguments import choice, whole_number


def _cosine_betas(start, end, count):
    """Computes equation 17 of Nichol and Dhariwal 2021 (arXiv:2102.09672), which ignores `start` and `end`."""
    alphas_cumprod = np.cos((np.arange(count + 1) / count + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alphas_cumprod[1:] / alphas_cumprod[:-1], 0.999)


BETA_SCHEDULES = {
    "linear": np.linspace,
    "scaled_linear": lambda start, end, count: np.linspace(start**0.5, end**0.5, count) ** 2,
    "squaredcos_cap_v2": _cosine_betas,
}


def noise_schedule(
    beta_schedule="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    num_train_timesteps=1000,
    trained_betas=None,
    rescale_betas_zero_snr=False,
):
    """Returns `alphas_cumprod`, the share of signal left at every training timestep.

    The defaults are Stable Diffusion's (CompVis `configs/stable-diffusion/v1-inference.yaml`), the arguments are the
    keys of a diffusers `scheduler_config.json`.

    Args:
        beta_schedule: One of "linear", "scaled_linear" and "squaredcos_cap_v2".
        beta_start: Noise variance added by the first timestep.
        beta_end: Noise variance added by the last timestep.
        num_train_timesteps: Number of timesteps.
        trained_betas: The variances themselves, instead of the four arguments above.
        rescale_betas_zero_snr: Whether the last timestep keeps no signal at all (Lin et al. 2023, arXiv:2305.08891,
            algorithm 1).

    Returns:
        A float64 array of shape (num_train_timesteps,), decreasing, between 0 and 1.

    Raises:
        TypeError: If `num_train_timesteps` is not an int.
        ValueError: If an argument is out of its range.
    """
    if trained_betas is None:
        num_train_timesteps = whole_number("num_train_timesteps", num_train_timesteps, 2, 100_000)
        betas_of = BETA_SCHEDULES[choice("beta_schedule", beta_schedule, BETA_SCHEDULES)]
        trained_betas = betas_of(beta_start, beta_end, num_train_timesteps)
    betas = np.asarray(trained_betas, "float64")
    if betas.ndim != 1 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(
            "The variance added by a timestep must be between 0 and 1. "
            f"Received: beta_start={repr(beta_start)[:50]}, beta_end={repr(beta_end)[:50]}, betas={repr(betas)[:50]}"
        )
    alphas_cumprod = np.cumprod(1 - betas)
    if rescale_betas_zero_snr:
        alphas = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    return alphas_cumprod


# Timestep spacings (Lin et al. 2023, table 2, as diffusers rounds them). Each returns `num_steps` timesteps, noisiest
# first. `extra_points` is 1 for the solvers that spend one more point of the grid on the clean end.


def _leading(num_train_timesteps, num_steps, extra_points, offset):
    """Chooses multiples of a stride, plus an offset."""
    stride = max(num_train_timesteps // (num_steps + extra_points), 1)
    timesteps = np.arange(extra_points, num_steps + extra_points)[::-1] * stride
    return timesteps + min(offset, num_train_timesteps - 1 - timesteps[0])


def _trailing(num_train_timesteps, num_steps, extra_points, offset):
    """Chooses timesteps at equal distances, from the last one down."""
    # Rounding lets `arange` overshoot by one for some counts (61, 103, ...).
    return np.arange(num_train_timesteps, 0, -num_train_timesteps / num_steps)[:num_steps].round() - 1


def _linspace(num_train_timesteps, num_steps, extra_points, offset):
    """Chooses timesteps at equal distances, with both ends."""
    points = min(num_steps + extra_points, num_train_timesteps)
    return np.linspace(0, num_train_timesteps - 1, points)[::-1][:num_steps]


def _keras_cv(num_train_timesteps, num_steps, extra_points, offset):
    """Chooses as KerasCV 0.9's `generate_image`: `round(arange(n) * 999 / (n - 1))`, and [0] for one step."""
    return np.linspace(0, num_train_timesteps - 1, num_steps).round()[::-1]


def _lcm(num_train_timesteps, num_steps, extra_points, offset, distilled_steps=50):
    """Chooses evenly among the 50 distilled timesteps: the skipping-step of Luo et al. 2023 (arXiv:2310.04378)."""
    count = max(distilled_steps, num_steps)
    distilled = np.arange(count, 0, -1) * (num_train_timesteps // count) - 1
    return distilled[np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)]


SPACINGS = {"leading": _leading, "trailing": _trailing, "linspace": _linspace, "keras_cv": _keras_cv, "lcm": _lcm}


def karras_ratios(first, last, num_steps, rho=7.0):
    """Computes equation 5 of Karras et al. 2022 (arXiv:2206.00364), without the zero at its end."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), num_steps) ** rho


@dataclass(frozen=True, eq=False)
class Levels:
    """Holds the noise levels of n latents, noisiest first, and the level of the result.

    Args:
        timesteps: float64 (n,), the timesteps given to the network.
        ratios: float64 (n + 1,), sigma / alpha; 0 is a clean latent.
        training_ratios: float64 (num_train_timesteps,), sigma / alpha of every training timestep.
    """

    timesteps: np.ndarray
    ratios: np.ndarray
    training_ratios: np.ndarray

    def __len__(self):
        return len(self.timesteps)

    @property
    def alphas(self):
        return 1 / np.hypot(1, self.ratios)

    @property
    def sigmas(self):
        with np.errstate(divide="ignore"):
            return 1 / np.hypot(1, 1 / self.ratios)

    @property
    def log_snrs(self):
        """Returns half the logarithm of the signal-to-noise ratio: lambda in the DPM-Solver papers."""
        with np.errstate(divide="ignore"):
            return -np.log(self.ratios)

    def visit(self, indices):
        """Returns the levels at `indices`, followed by the last level."""
        return Levels(self.timesteps[indices], self.ratios[[*indices, -1]], self.training_ratios)

    def with_midpoints(self):
        """Adds a level halfway, in log-ratio, between every two timesteps."""
        middle = np.sqrt(self.ratios[1:-1] * self.ratios[:-2])
        timesteps = np.insert(self.timesteps, range(1, len(self)), timestep_of(middle, self.training_ratios))
        ratios = np.insert(self.ratios, range(1, len(self)), middle)
        return Levels(timesteps, ratios, self.training_ratios)


def timestep_of(ratios, training_ratios):
    """Finds the timesteps, not necessarily whole, that have these noise ratios; it interpolates the logarithm."""
    return np.interp(np.log(ratios), np.log(training_ratios), np.arange(len(training_ratios)))


def noise_levels(alphas_cumprod, timesteps, karras=None, round_timesteps=False, ends_clean=True):
    """Returns the noise levels at the given timesteps.

    Args:
        alphas_cumprod: float64 (num_train_timesteps,), see `noise_schedule`.
        timesteps: (n,), noisiest first, not necessarily whole.
        karras: None, "visited" or "trained": spread n levels as Karras et al. do, between the extremes of `timesteps`
            or of the training schedule.
        round_timesteps: Whether the network is given whole timesteps only.
        ends_clean: Whether the last level is a clean latent; otherwise it is that of timestep 0.

    Returns:
        The `Levels`.
    """
    timesteps = np.asarray(timesteps, "float64")
    with np.errstate(divide="ignore"):
        training_ratios = np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
    ratios = np.interp(timesteps, np.arange(len(training_ratios)), training_ratios)
    if karras:
        extremes = training_ratios[::-1] if karras == "trained" else ratios
        ratios = karras_ratios(extremes[0], extremes[-1], len(timesteps))
        timesteps = timestep_of(ratios, training_ratios)
        timesteps = timesteps.round() if round_timesteps else timesteps
    return Levels(timesteps, np.append(ratios, 0.0 if ends_clean else training_ratios[0]), training_ratios)
