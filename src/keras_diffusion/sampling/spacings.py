"""Chooses the timesteps or the noise levels that a sampler visits.

Three families, each a dict of functions: `SPACINGS` choose timesteps as diffusers does, `SPREADS` distribute levels
between two extremes, and `LEVEL_SPACINGS` choose levels as k-diffusion, A1111 and ComfyUI do.
"""

import math

import numpy as np

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
    """Chooses evenly among the distilled timesteps: the skipping-step of Luo et al. 2023 (arXiv:2310.04378)."""
    count = max(distilled_steps, num_steps)
    distilled = np.arange(count, 0, -1) * (num_train_timesteps // count) - 1
    return distilled[np.floor(np.linspace(0, count, num_steps, endpoint=False)).astype(int)]


SPACINGS = {"leading": _leading, "trailing": _trailing, "linspace": _linspace, "keras_cv": _keras_cv, "lcm": _lcm}


# Spreads: n noise ratios between the first and the last, noisiest first.


def karras(first, last, num_steps, rho=7.0):
    """Computes equation 5 of Karras et al. 2022 (arXiv:2206.00364), without the zero at its end."""
    return np.linspace(first ** (1 / rho), last ** (1 / rho), num_steps) ** rho


def exponential(first, last, num_steps):
    """Divides the logarithm of the ratio evenly: k-diffusion's `get_sigmas_exponential`.

    That is also the uniform lambda of Lu et al. 2022 (arXiv:2206.00927), diffusers' `use_lu_lambdas`.
    """
    return np.exp(np.linspace(math.log(first), math.log(last), num_steps))


def beta(first, last, num_steps, shape=0.6):
    """Chooses quantiles of a beta distribution: Lee et al. 2024 (arXiv:2407.12173), as diffusers and A1111 do."""
    return last + (first - last) * _beta_quantile(1 - np.linspace(0, 1, num_steps), shape)


SPREADS = {"karras": karras, "exponential": exponential, "beta": beta, "lu": exponential}


def _beta_quantile(probability, shape):
    """Returns the quantiles of the symmetric beta distribution: bisects its cumulative function's power series.

    The function below 1/2 is x^a / (a B(a, a)) 2F1(a, 1 - a; a + 1; x); above, it is symmetric.
    """
    terms = np.arange(1, 60)
    series = np.cumprod(np.append(1.0, (terms - shape) / terms)) * shape / (shape + np.arange(60))
    scale = math.gamma(2 * shape) / math.gamma(shape) ** 2 / shape
    target = np.minimum(probability, 1 - probability)
    low, high = np.zeros_like(target), np.full_like(target, 0.5)
    for _ in range(100):
        middle = (low + high) / 2
        above = scale * middle**shape * np.polynomial.polynomial.polyval(middle, series) > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.where(probability > 0.5, 1 - low, low)


# Level spacings: functions of all training ratios, cleanest first, and the number of steps, that return the ratios,
# noisiest first. They interpolate the logarithm of the ratio between timesteps, as k-diffusion does.


def ratio_of(timesteps, training_ratios):
    """Finds the noise ratios of timesteps that need not be whole; it interpolates the logarithm."""
    return np.exp(np.interp(timesteps, np.arange(len(training_ratios)), np.log(training_ratios)))


def timestep_of(ratios, training_ratios):
    """Finds the timesteps, not necessarily whole, that have these noise ratios; it interpolates the logarithm."""
    return np.interp(np.log(ratios), np.log(training_ratios), np.arange(len(training_ratios)))


def _normal(training_ratios, num_steps):
    """Divides the timesteps evenly, with both ends."""
    return ratio_of(np.linspace(len(training_ratios) - 1, 0, num_steps), training_ratios)


def _sgm_uniform(training_ratios, num_steps):
    """Divides the timesteps evenly, without the clean end (Stability AI's generative-models)."""
    return ratio_of(np.linspace(len(training_ratios) - 1, 0, num_steps + 1)[:-1], training_ratios)


def _simple(training_ratios, num_steps):
    """Counts down from the last timestep, at distances cut to whole numbers (ComfyUI's `simple_scheduler`)."""
    distance = len(training_ratios) / num_steps
    return training_ratios[[len(training_ratios) - 1 - int(i * distance) for i in range(num_steps)]]


def _ddim_uniform(training_ratios, num_steps):
    """Counts up from timestep 1 by a whole stride (ComfyUI's `ddim_scheduler`).

    The number of steps is another one where the stride does not divide the timesteps.
    """
    return training_ratios[1 :: max(len(training_ratios) // num_steps, 1)][::-1]


# Sabour et al. 2024 (arXiv:2404.14507), the levels of Stable Diffusion 1.5.
ALIGN_YOUR_STEPS = np.array(
    [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029], dtype="float64"
)


def _align_your_steps(training_ratios, num_steps):
    """Interpolates the ten steps that were optimised for Stable Diffusion 1.5, in log-linear fashion."""
    points = np.linspace(0, len(ALIGN_YOUR_STEPS) - 1, num_steps + 1)
    return np.exp(np.interp(points, np.arange(len(ALIGN_YOUR_STEPS)), np.log(ALIGN_YOUR_STEPS)))[:-1]


def _kl_optimal(training_ratios, num_steps):
    """Divides the angle whose tangent is the ratio evenly: Sabour et al. 2024 (arXiv:2404.14507), equation 17."""
    return np.tan(np.linspace(*np.arctan(training_ratios[[-1, 0]]), num_steps))


LEVEL_SPACINGS = {
    "normal": _normal,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "ddim_uniform": _ddim_uniform,
    "align_your_steps": _align_your_steps,
    "kl_optimal": _kl_optimal,
}
ALL_SPACINGS = (*SPACINGS, *SPREADS, *LEVEL_SPACINGS)
