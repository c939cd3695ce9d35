"""Solvers that ask the network twice a step: at its beginning, and at a level on the way.

Both stages of a step start from the latent before it. The recurrence only has the latent at hand, so the second row
first takes back what the first one did. The last step has one stage, Euler's.
"""

import numpy as np

from keras_diffusion.sampling.recurrence import as_column, before_and_after, recurrence


def ancestral_split(ratio, next_ratio, eta):
    """Splits the next level between a step down and fresh noise, as k-diffusion's `get_ancestral_step` does."""
    fresh = eta * next_ratio / ratio * np.sqrt(ratio**2 - next_ratio**2)
    return np.sqrt(next_ratio**2 - fresh**2), fresh


def heun(levels):
    """Solves by Heun's method: Karras et al. 2022 (arXiv:2206.00364), algorithm 1.

    The second row starts from Euler's result, so it only adds half the change of the noise.
    """
    rows = np.arange(2 * len(levels) - 1)
    steps, second = rows // 2, rows % 2
    a = levels.alphas[1:] / levels.alphas[:-1]
    b = levels.alphas[1:] * np.diff(levels.ratios)
    b = as_column(b[steps]) * np.array([[1, 0], [1 / 2, -1 / 2]])[second]
    return recurrence(levels.visit(steps + second), np.where(second, 1, a[steps]), b, steps=steps)


def dpm2(levels, eta):
    """Solves by DPM-Solver-2, or by its ancestral form if eta is 1.

    Source: Lu et al. 2022 (arXiv:2206.00927), algorithm 1, as k-diffusion's `sample_dpm_2` and
    `sample_dpm_2_ancestral`.
    """
    ratio, next_ratio = before_and_after(levels.ratios)
    down, fresh = ancestral_split(ratio, next_ratio, eta)
    middle = np.sqrt(down * ratio)
    return _two_stages(
        levels, middle, first=(1, middle - ratio, 0), second=(1, down - ratio, fresh), last=(1, next_ratio - ratio)
    )


def dpmpp_2s(levels, eta):
    """Solves by DPM-Solver++(2S), or by its ancestral form if eta is 1.

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 1, as k-diffusion's `sample_dpmpp_2s_ancestral`.
    """
    ratio, next_ratio = before_and_after(levels.ratios)
    down, fresh = ancestral_split(ratio, next_ratio, eta)
    middle = np.sqrt(down * ratio)
    return _two_stages(
        levels,
        middle,
        first=(middle / ratio, 1 - middle / ratio, 0),
        second=(down / ratio, 1 - down / ratio, fresh),
        last=(next_ratio / ratio, 1 - next_ratio / ratio),
    )


def dpmpp_sde(levels, eta):
    """Solves by DPM-Solver++ with fresh noise in both stages, as k-diffusion's `sample_dpmpp_sde`.

    Both noises are of one Brownian path over the ratio, so the second contains the first.
    """
    ratio, next_ratio = before_and_after(levels.ratios)
    middle = np.sqrt(next_ratio * ratio)
    (down, fresh), (down_middle, fresh_middle) = (ancestral_split(ratio, end, eta) for end in (next_ratio, middle))
    return _two_stages(
        levels,
        middle,
        first=(down_middle / ratio, 1 - down_middle / ratio, fresh_middle),
        second=(down / ratio, 1 - down / ratio, fresh),
        last=(next_ratio / ratio, 1 - next_ratio / ratio),
        correlation=np.sqrt((ratio - middle) / (ratio - next_ratio)),
    )


def _two_stages(levels, middle, first, second, last, correlation=0.0):
    """Makes the two stages of every step but the last into rows.

    Args:
        levels: `Levels` of the n steps.
        middle: float (n,), the noise ratios at which the second stages ask the network.
        first: (a, b, d) of the first stages, each a number or float (n,), for X' = a X + b h + d z and X = x / alpha.
        second: Likewise for the second stages, which start from the same X.
        last: (a, b) of the only stage of the last step.
        correlation: float (n,), that of a second stage's z with the first's.

    Returns:
        The `Recurrence`.
    """
    (a1, b1, d1), (a2, b2, d2) = (np.broadcast_arrays(*stage, middle)[:3] for stage in (first, second))
    last_a, last_b = np.broadcast_arrays(*last)
    rows = np.arange(2 * len(levels) - 1)
    steps, is_second = rows // 2, rows % 2 == 1
    back = a2 / a1
    of_first, of_second = correlation * d2 - back * d1, np.sqrt(1 - correlation**2) * d2
    added = np.hypot(of_first, of_second)
    a = np.where(is_second, back[steps], a1[steps])
    latest = np.where(is_second, b2[steps], b1[steps])
    earlier = np.where(is_second, -(back * b1)[steps], 0)
    d = np.where(is_second, added[steps], d1[steps])
    a[-1], latest[-1], d[-1] = last_a[-1], last_b[-1], 0
    noises = correlations = None
    if d1.any():  # a noise for each stage
        noises = 2 * levels.first_step + rows
        correlations = np.where(is_second & (d > 0), (of_first / added)[steps], 0)
    levels = levels.with_between(middle[:-1])
    alpha, next_alpha = before_and_after(levels.alphas)
    b = as_column(next_alpha) * np.stack([latest, earlier], axis=1)
    return recurrence(levels, next_alpha / alpha * a, b, next_alpha * d, steps, noises, correlations)
