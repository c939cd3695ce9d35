"""Solvers turn the noise levels of a trajectory into the coefficients of one affine recurrence (`recurrence.py`).

A solver is a function of the levels that returns a `Recurrence`.
"""

import numpy as np

from keras_diffusion.sampling.recurrence import A, B, as_column, before_and_after, recurrence


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

    The split of the next level between Euler's step and fresh noise is k-diffusion's `get_ancestral_step`.
    """
    ratio, next_ratio = before_and_after(levels.ratios)
    alpha, next_alpha = before_and_after(levels.alphas)
    fresh = eta * next_ratio / ratio * np.sqrt(ratio**2 - next_ratio**2)
    reached = np.sqrt(next_ratio**2 - fresh**2)
    return recurrence(levels, next_alpha / alpha, as_column(next_alpha * (reached - ratio)), next_alpha * fresh)


def heun(levels):
    """Solves by Heun's method, two rows a step: Karras et al. 2022 (arXiv:2206.00364), algorithm 1.

    The second row starts from Euler's result, so it only adds half the change of the noise. The last step is Euler's.
    """
    rows = np.arange(2 * len(levels) - 1)
    steps, second = rows // 2, rows % 2
    a, b = _noise_step(levels)
    b = as_column(b[steps]) * np.array([[1, 0], [1 / 2, -1 / 2]])[second]
    return recurrence(levels.visit(steps + second), np.where(second, 1, a[steps]), b, steps=steps)


def dpm2(levels):
    """Solves by DPM-Solver-2, two rows a step.

    Source: Lu et al. 2022 (arXiv:2206.00927), algorithm 1, as k-diffusion's `sample_dpm_2`.

    The first row goes to the midpoint, the second goes back and takes the whole step with the noise found there. The
    last step is Euler's.
    """
    levels = levels.with_midpoints()
    a, b = _noise_step(levels)
    b = np.stack([b, np.zeros_like(b)], axis=1)
    back = a[1::2] * b[:-1:2, 0]
    b[1::2] += np.stack([back, -back], axis=1)
    return recurrence(levels, a, b, steps=np.arange(len(levels)) // 2)


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


def _growth(levels):
    """Returns the length of each step in log-SNR over that of the step before; 0 for the first and last, of order 1."""
    h = np.diff(levels.log_snrs)
    growth = np.zeros(len(levels))
    growth[1:-1] = h[1:-1] / h[:-2]
    return growth


def dpmpp_2m(levels, eta):
    """Solves by DPM-Solver++(2M), or by SDE-DPM-Solver++(2M) if eta is 1.

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2. Between the two, eta divides the step as k-diffusion's
    `sample_dpmpp_2m_sde` does. The last step is of order 1.
    """
    alpha, next_alpha = before_and_after(levels.alphas)
    sigma, next_sigma = before_and_after(levels.sigmas)
    decay = (next_sigma * alpha) / (next_alpha * sigma)  # e^-h
    a = next_sigma / sigma * decay**eta
    gain = next_alpha * (1 - decay ** (1 + eta))
    slope = gain / 2 * _growth(levels)
    return recurrence(levels, a, np.stack([gain + slope, -slope], axis=1), next_sigma * np.sqrt(1 - decay ** (2 * eta)))


def unipc(levels):
    """Solves by UniPC of order 2 with B(h) = e^h - 1, for the denoised latent.

    Source: Zhao et al. 2023 (arXiv:2302.04867).

    Its predictor is DPM-Solver++(2M). Its corrector repeats the previous step with the denoised latent at its end.
    Both keep the same share of x, so the corrector only changes the weights of three denoised latents.
    """
    result = dpmpp_2m(levels, eta=0)
    h = np.diff(levels.log_snrs)[:-1]
    growth = _growth(levels)[:-1]
    bh = np.expm1(-h)
    first = (-bh / h - 1) / bh  # the right-hand sides of UniC's linear system
    second = 2 * ((1 + bh / h) / h - 1 / 2) / bh
    earlier = (first - second) * growth / (1 + growth)
    latest = first - earlier
    latest[:1] = 1 / 2  # order 1
    bend = (earlier - 1 / 2) * growth
    change = np.stack([latest, bend - latest, -bend], axis=1) * as_column(-levels.alphas[1:-1] * bh)
    result.rows[1:, B : B + 3] += result.rows[1:, [A]] * change
    return result


def lcm(levels):
    """Solves by multistep latent consistency sampling: Luo et al. 2023 (arXiv:2310.04378).

    c_skip and c_out are those of Song et al. 2023 (arXiv:2303.01469), appendix C, with the constants of LCM's authors.
    """
    sigma_data, timestep_scaling = 0.5, 10.0
    scaled = timestep_scaling * levels.timesteps
    skip = sigma_data**2 / (scaled**2 + sigma_data**2)
    out = scaled / np.hypot(scaled, sigma_data)
    return recurrence(levels, levels.alphas[1:] * skip, as_column(levels.alphas[1:] * out), levels.sigmas[1:])
