"""Computes the noise schedule that a model was trained with, and the noise levels that a sampler visits.

A noisy latent is `alpha * denoised + sigma * noise` with `alpha² + sigma² = 1`. Samplers count noise by the ratio
`sigma / alpha`, which k-diffusion calls sigma. Everything is NumPy in float64.
"""

from dataclasses import dataclass, replace

import numpy as np

from keras_diffusion.arguments import choice, whole_number
from keras_diffusion.sampling.spacings import SPREADS, timestep_of


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
            f"Received: beta_start={beta_start!r:.50}, beta_end={beta_end!r:.50}, betas={betas!r:.50}"
        )
    alphas_cumprod = np.cumprod(1 - betas)
    if rescale_betas_zero_snr:
        alphas = np.sqrt(alphas_cumprod)
        alphas_cumprod = ((alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])) ** 2
    return alphas_cumprod


@dataclass(frozen=True, eq=False)
class Levels:
    """Holds the noise levels of n latents, noisiest first, and the level of the result.

    Args:
        timesteps: float64 (n,), the timesteps given to the network.
        ratios: float64 (n + 1,), sigma / alpha; 0 is a clean latent.
        training_ratios: float64 (num_train_timesteps,), sigma / alpha of every training timestep.
        first_step: The number of the first level's step; those before it were left out (image to image).
    """

    timesteps: np.ndarray
    ratios: np.ndarray
    training_ratios: np.ndarray
    first_step: int = 0

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

    def starting_at(self, step):
        """Leaves out the steps before one."""
        return replace(self, timesteps=self.timesteps[step:], ratios=self.ratios[step:], first_step=step)

    def visit(self, indices):
        """Returns the levels at `indices`, followed by the last level."""
        return replace(self, timesteps=self.timesteps[indices], ratios=self.ratios[[*indices, -1]])

    def with_between(self, ratios):
        """Adds a level between every two timesteps; `ratios` has the noise ratios of these n - 1 levels."""
        places = range(1, len(self))
        timesteps = np.insert(self.timesteps, places, timestep_of(ratios, self.training_ratios))
        return replace(self, timesteps=timesteps, ratios=np.insert(self.ratios, places, ratios))


# How diffusers makes whole timesteps of those of a spacing, for the schedulers that take only whole ones.
TO_WHOLE = {"linspace": np.round, "karras": np.round, "lu": np.round, "exponential": np.floor, "beta": np.floor}


def noise_levels(alphas_cumprod, timesteps, spread=None, extremes="visited", whole_timesteps=False, ends_clean=True):
    """Returns the noise levels at the given timesteps.

    Args:
        alphas_cumprod: float64 (num_train_timesteps,), see `noise_schedule`.
        timesteps: (n,), noisiest first, not necessarily whole.
        spread: A name in `spacings.SPREADS`, which distributes n levels anew between two extremes, or None.
        extremes: Those of the `timesteps` "visited", or those of the schedule as "trained".
        whole_timesteps: Whether the network is given whole timesteps only, where the levels are spread anew.
        ends_clean: Whether the last level is a clean latent; otherwise it is that of timestep 0.

    Returns:
        The `Levels`.
    """
    timesteps = np.asarray(timesteps, "float64")
    ratios_of_all = training_ratios(alphas_cumprod)
    ratios = np.interp(timesteps, np.arange(len(ratios_of_all)), ratios_of_all)
    if spread:
        first, last = (ratios_of_all[::-1] if extremes == "trained" else ratios)[[0, -1]]
        ratios = SPREADS[spread](first, last, len(timesteps))
        timesteps = timestep_of(ratios, ratios_of_all)
        timesteps = TO_WHOLE[spread](timesteps) if whole_timesteps else timesteps
    return Levels(timesteps, np.append(ratios, 0.0 if ends_clean else ratios_of_all[0]), ratios_of_all)


def chosen_levels(alphas_cumprod, choose, num_steps, ends_clean=True):
    """Returns noise levels as k-diffusion chooses them.

    Args:
        alphas_cumprod: float64 (num_train_timesteps,), see `noise_schedule`.
        choose: A function in `spacings.LEVEL_SPACINGS`.
        num_steps: Number of steps.
        ends_clean: See `noise_levels`.

    Returns:
        The `Levels`.
    """
    ratios_of_all = training_ratios(alphas_cumprod)
    ratios = choose(ratios_of_all, num_steps)
    timesteps = timestep_of(ratios, ratios_of_all)
    return Levels(timesteps, np.append(ratios, 0.0 if ends_clean else ratios_of_all[0]), ratios_of_all)


def training_ratios(alphas_cumprod):
    """Returns sigma / alpha of every training timestep."""
    with np.errstate(divide="ignore"):
        return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)
