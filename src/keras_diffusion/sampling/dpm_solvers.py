"""Solvers that ask the network once a step and remember: exponential integrators in log-SNR.

In what follows h is the length of a step in log-SNR, and the estimate is the denoised latent, but for DEIS the noise.
"""

import numpy as np

from keras_diffusion.sampling.recurrence import A, B, as_column, before_and_after, recurrence

SHORT = 15  # diffusers lowers the order of the last steps where there are fewer


def _orders(levels, order, falls=False, first_order_last=False):
    """Returns the order of each step: it grows from 1 with the history, and may fall to 1 at the end."""
    remaining = np.arange(len(levels), 0, -1)
    orders = np.minimum(remaining[::-1], order)
    if falls:
        orders = np.minimum(orders, remaining)
    if first_order_last or levels.ratios[-1] == 0:
        orders[-1] = 1
    return orders


def _is_short(levels):
    return levels.first_step + len(levels) < SHORT


def _earlier(values, n):
    """Returns the values n steps before; 1 where there are none."""
    return np.concatenate([np.ones(n), values])[: len(values)]


def dpmpp(levels, eta, order=2, heun=False, lower_order_final=True, euler_at_final=False):
    """Solves by multistep DPM-Solver++, or by its SDE form if eta is 1.

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 2 and equations B.4 to B.6. Between the two, eta divides the
    step as k-diffusion's `sample_dpmpp_2m_sde` and `sample_dpmpp_3m_sde` do.

    Args:
        levels: `Levels`.
        eta: From 0 to 1.
        order: 1, 2 or 3.
        heun: Whether a step of order 2 takes the exact integral instead of the midpoint rule.
        lower_order_final: Whether the last steps are of lower order where there are fewer than 15.
        euler_at_final: Whether the last step is of order 1; it always is if it ends at a clean latent.
    """
    alpha, next_alpha = before_and_after(levels.alphas)
    sigma, next_sigma = before_and_after(levels.sigmas)
    h = np.diff(levels.log_snrs)
    h1, h2 = _earlier(h, 1), _earlier(h, 2)
    orders = _orders(levels, order, lower_order_final and _is_short(levels), euler_at_final)
    decay = (next_sigma * alpha) / (next_alpha * sigma)  # e^-h
    length = h * (1 + eta)
    gain = 1 - decay ** (1 + eta)
    phi2 = 1 - gain / length
    phi3 = phi2 / length - 1 / 2
    # The weights of the latest slope of the denoised latent, (h_n - h_{n-1}) / (h1 / h), and of the one before.
    slope = np.where(orders == 2, phi2 if heun else gain / 2, phi2 * (1 + h1 / (h1 + h2)) - phi3 * h / (h1 + h2))
    before = phi3 * h / (h1 + h2) - phi2 * h1 / (h1 + h2)
    slope = np.where(orders > 1, slope * h / h1, 0)
    before = np.where(orders > 2, before * h / h2, 0)
    b = as_column(next_alpha) * np.stack([gain + slope, before - slope, -before], axis=1)
    return recurrence(levels, next_sigma / sigma * decay**eta, b, next_sigma * np.sqrt(1 - decay ** (2 * eta)))


def singlestep(levels, order=2, heun=False, lower_order_final=False):
    """Solves by singlestep DPM-Solver++: groups of `order` steps, of which each starts from the group's first latent.

    Source: Lu et al. 2022 (arXiv:2211.01095), algorithm 1, as diffusers' `DPMSolverSinglestepScheduler`.

    Args:
        levels: `Levels`.
        order: 1, 2 or 3.
        heun: Whether the integrals are exact instead of by the midpoint rule.
        lower_order_final: Whether the last step is of order 1; it always is if it ends at a clean latent.
    """
    ratios = levels.ratios
    orders = (levels.first_step + np.arange(len(levels))) % order + 1
    if ratios[-1] == 0 or (lower_order_final and orders[-1] == order):
        orders[-1] = 1
    a = ratios[1:] / ratios[:-1]
    from_first = np.zeros((len(levels), 3))  # the weights of a row from the first latent of its group
    b = np.zeros((len(levels), 3))
    for n, k in enumerate(np.minimum(orders, np.arange(len(levels)) + 1)):
        from_first[n, :k] = _singlestep(ratios[n - k + 1 : n + 2], heun)
        b[n] = from_first[n]
        if k > 1:
            b[n, 1:] -= a[n] * from_first[n - 1, :2]
    alpha, next_alpha = before_and_after(levels.alphas)
    return recurrence(levels, next_alpha / alpha * a, as_column(next_alpha) * b)


def _singlestep(ratios, heun):
    """Returns the weights of the k estimates of a group, newest first, in a step over all of its k + 1 ratios."""
    first, *between, last = ratios
    gain = 1 - last / first
    if not between:
        return [gain]
    h = np.log(first / last)
    phi2 = 1 - gain / h
    at = np.log(first / np.array(between)) / h  # where the estimates lie in the step
    if len(between) == 1:
        slope = (phi2 if heun else gain / 2) / at[0]
        return [slope, gain - slope]
    earlier, latest = at
    if not heun:
        return [phi2 / latest, 0, gain - phi2 / latest]
    phi3 = phi2 / h - 1 / 2
    to_latest = (-phi2 * earlier - 2 * phi3) / (latest - earlier) / latest
    to_earlier = (phi2 * latest + 2 * phi3) / (latest - earlier) / earlier
    return [to_latest, to_earlier, gain - to_latest - to_earlier]


def deis(levels, order=2, lower_order_final=True):
    """Solves by DEIS in log-rho: Zhang and Chen 2022 (arXiv:2204.13902), equation 15.

    The noise is a polynomial in the logarithm of the ratio, through its latest values. Its integrals are those of
    u^k e^u, with u counted from the ratio at the beginning of the step.

    Args:
        levels: `Levels`.
        order: 1, 2 or 3.
        lower_order_final: Whether the last steps are of lower order where there are fewer than 15.
    """
    ratio, _ = before_and_after(levels.ratios)
    h = np.diff(levels.log_snrs)
    orders = _orders(levels, order, lower_order_final and _is_short(levels))
    end = np.where(levels.ratios[1:] > 0, -h, 0)
    grown = np.where(levels.ratios[1:] > 0, np.exp(end), 0)
    constant = ratio * (grown - 1)
    linear = ratio * (grown * (end - 1) + 1)
    square = ratio * (grown * (end**2 - 2 * end + 2) - 2)
    u1 = _earlier(h, 1)
    u2 = u1 + _earlier(h, 2)
    second = np.stack([constant - linear / u1, linear / u1, 0 * u1], axis=1)
    third = np.stack(
        [
            constant - (u1 + u2) / (u1 * u2) * linear + square / (u1 * u2),
            (square - u2 * linear) / (u1 * (u1 - u2)),
            (square - u1 * linear) / (u2 * (u2 - u1)),
        ],
        axis=1,
    )
    first = np.stack([constant, 0 * u1, 0 * u1], axis=1)
    b = np.select([as_column(orders == k) for k in (1, 2, 3)], [first, second, third])
    alpha, next_alpha = before_and_after(levels.alphas)
    return recurrence(levels, next_alpha / alpha, as_column(next_alpha) * b)


def unipc(levels, order=2, bh1=False, lower_order_final=True, disable_corrector=()):
    """Solves by UniPC: Zhao et al. 2023 (arXiv:2302.04867), for the denoised latent.

    Its corrector repeats the previous step with the denoised latent at its end. Predictor and corrector keep the same
    share of x, so the corrector only changes the weights of the denoised latents.

    Args:
        levels: `Levels`.
        order: 1, 2 or 3.
        bh1: Whether B(h) is h instead of e^h - 1.
        lower_order_final: Whether the last steps are of lower order.
        disable_corrector: The steps that are not corrected.
    """
    next_alpha = levels.alphas[1:]
    sigma, next_sigma = before_and_after(levels.sigmas)
    log_snrs = levels.log_snrs
    orders = _orders(levels, order, lower_order_final)
    result = recurrence(levels, next_sigma / sigma, np.zeros((len(levels), 1)))
    for n, k in enumerate(orders):
        nodes = (log_snrs[n - k + 1 : n][::-1] - log_snrs[n]) / (log_snrs[n + 1] - log_snrs[n])
        predicted, corrected = _unipc(log_snrs[n + 1] - log_snrs[n], nodes, bh1)
        result.rows[n, B : B + k] += next_alpha[n] * predicted
        if n + 1 < len(levels) and levels.first_step + n not in disable_corrector:
            change = next_alpha[n] * (corrected - np.append(0, predicted))
            result.rows[n + 1, B : B + k + 1] += result.rows[n + 1, A] * change
    return result


def _unipc(h, nodes, bh1):
    """Returns the weights of a step's predictor and corrector.

    Args:
        h: The length of the step.
        nodes: float (k - 1,), where the earlier estimates lie, in steps from its beginning.
        bh1: Whether B(h) is h.

    Returns:
        float (k,) for the estimate at the beginning and the earlier ones; float (k + 1,) for the one at the end first.
    """
    k = len(nodes) + 1
    scale = -h if bh1 else np.expm1(-h)
    phi, factorial, sides = np.expm1(-h) / -h - 1, 1, []
    for i in range(1, k + 1):
        sides.append(phi * factorial / scale)
        factorial *= i + 1
        phi = phi / -h - 1 / factorial
    powers = np.append(nodes, 1.0) ** as_column(np.arange(k))
    corrector = np.linalg.solve(powers, sides) if k > 1 else np.array([1 / 2])
    predictor = np.linalg.solve(powers[:-1, :-1], sides[:-1]) if k > 2 else np.full(k - 1, 1 / 2)

    def weights(at_end, slopes):
        slopes = -scale * slopes / nodes
        return np.array([*at_end, -np.expm1(-h) - slopes.sum() - sum(at_end), *slopes])

    return weights([], predictor), weights([-scale * corrector[-1]], corrector[:-1])
