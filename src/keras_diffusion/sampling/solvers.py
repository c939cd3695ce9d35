"""Solvers turn the noise levels of a trajectory into the coefficients of one affine recurrence (`recurrence.py`).

A solver is a function of the levels that returns a `Recurrence`.
"""

import numpy as np

from keras_diffusion.sampling.recurrence import as_column, before_and_after, recurrence
from keras_diffusion.sampling.schedules import Levels
from keras_diffusion.sampling.two_stage import ancestral_split


def _noise_step(levels):
    """Returns a and b of x' = a x + b noise, for constant noise: Song et al. 2020 (arXiv:2010.02502), equation 13."""
    return levels.alphas[1:] / levels.alphas[:-1], levels.alphas[1:] * np.diff(levels.ratios)


def ddim(levels, eta):
    """Solves by DDIM, or by DDPM if eta is 1: Song et al. 2020 (arXiv:2010.02502), equations 12 and 16."""
    alpha, next_alpha = before_and_after(levels.alphas)
    sigma, next_sigma = before_and_after(levels.sigmas)
    fresh = eta * next_sigma / sigma * np.sqrt(1 - (alpha / next_alpha) ** 2)
    a = np.sqrt(next_sigma**2 - fresh**2) / sigma
    return recurrence(levels, a, as_column(next_alpha - a * alpha), fresh)


def euler(levels, eta):
    """Solves by Euler's method, or by its ancestral form if eta is 1.

    Source: Karras et al. 2022 (arXiv:2206.00364), algorithm 2 without churn.
    """
    ratio, next_ratio = before_and_after(levels.ratios)
    alpha, next_alpha = before_and_after(levels.alphas)
    down, fresh = ancestral_split(ratio, next_ratio, eta)
    return recurrence(levels, next_alpha / alpha, as_column(next_alpha * (down - ratio)), next_alpha * fresh)


def lms(levels):
    """Solves by a linear multistep of order 4 (Adams-Bashforth, uneven steps), as k-diffusion's `sample_lms`.

    The weight of an earlier noise is the integral, over the step, of the Lagrange polynomial that is 1 at its level and
    0 at the others; two Gauss-Legendre nodes integrate a cubic exactly.
    """
    order, ratios = 4, levels.ratios
    nodes = np.array([-1, 1]) / np.sqrt(3)
    b = np.zeros((len(levels), order))
    for n in range(len(levels)):
        known = ratios[max(n + 1 - order, 0) : n + 1][::-1]
        half, middle = (ratios[n + 1] - ratios[n]) / 2, (ratios[n + 1] + ratios[n]) / 2
        at = as_column(middle + half * nodes)
        for j, level in enumerate(known):
            others = np.delete(known, j)
            b[n, j] = np.prod((at - others) / (level - others), axis=1).sum() * half
    return recurrence(levels, _noise_step(levels)[0], as_column(levels.alphas[1:]) * b)


# The Adams-Bashforth weights of PNDM, row by row. Row 1 makes the first step again, with the mean of the noise at its
# two ends, and starts from the result of row 0. No later row uses its noise, because timestep 1 is asked once more.
PLMS = np.array(
    [
        [1, 0, 0, 0, 0],
        [1 / 2, -1 / 2, 0, 0, 0],
        [3 / 2, 0, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 0, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, 0, -9 / 24],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24, 0],
    ]
)


def pndm(levels):
    """Solves by PNDM with pseudo linear multistep alone (PLMS): Liu et al. 2022 (arXiv:2202.09778), equation 12.

    It starts as CompVis' `plms.py` does, with the first step made twice, so it has one row more than steps.
    """
    rows = np.arange(len(levels) + min(len(levels) - 1, 1))
    steps = np.maximum(rows - 1, 0)
    visits = steps + (rows == 1)  # 0, 1, 1, 2, 3, ...
    a, b = _noise_step(levels)
    b = as_column(b[steps]) * PLMS[np.minimum(rows, len(PLMS) - 1)]
    return recurrence(levels.visit(visits), np.where(rows == 1, 1, a[steps]), b, steps=steps)


ADAMS_BASHFORTH = np.array(
    [
        [1, 0, 0, 0],
        [3 / 2, -1 / 2, 0, 0],
        [23 / 12, -16 / 12, 5 / 12, 0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def ipndm(levels):
    """Solves by improved PNDM of order 4: Zhang and Chen 2022 (arXiv:2204.13902), algorithm 2.

    The weights are those of even steps, whatever the levels are, and the last step to a clean latent is of order 1, as
    in ComfyUI's `sample_ipndm`.
    """
    a, b = _noise_step(levels)
    orders = np.minimum(np.arange(len(levels)), len(ADAMS_BASHFORTH) - 1)
    orders[levels.ratios[1:] == 0] = 0
    return recurrence(levels, a, as_column(b) * ADAMS_BASHFORTH[orders])


def lcm(levels, timestep_scaling=10.0):
    """Solves by multistep latent consistency sampling: Luo et al. 2023 (arXiv:2310.04378).

    c_skip and c_out are those of Song et al. 2023 (arXiv:2303.01469), appendix C, with the constants of LCM's authors.
    """
    sigma_data = 0.5
    scaled = timestep_scaling * levels.timesteps
    skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    out = scaled / np.hypot(scaled, sigma_data)
    return recurrence(levels, levels.alphas[1:] * skip, as_column(levels.alphas[1:] * out), levels.sigmas[1:])


def tcd(levels, eta):
    """Solves by strategic stochastic sampling: Zheng et al. 2024 (arXiv:2402.19159), algorithm 4; eta is its gamma.

    A step goes down to the timestep `(1 - eta) * next` and comes back to the next one with fresh noise. The last ends
    at timestep 0.
    """
    alpha, next_alpha = before_and_after(levels.alphas)
    sigma = levels.sigmas[:-1]
    lowest = np.floor((1 - eta) * np.append(levels.timesteps[1:], 0)).astype(int)
    reached = Levels(lowest, levels.training_ratios[lowest], levels.training_ratios)
    back = next_alpha / reached.alphas
    a = back * reached.sigmas / sigma
    return recurrence(levels, a, as_column(next_alpha - a * alpha), np.sqrt(np.maximum(1 - back**2, 0)))
