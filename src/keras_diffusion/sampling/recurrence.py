"""The affine recurrence that one loop runs for every sampler.

    h_n     = p_n x_n + q_n model(x_n, t_n)
    x_{n+1} = a_n x_n + sum_j b_{n,j} h_{n-j} + d_n z_n

x is the latent with unit variance, z fresh noise, h an estimate of the noise or of the denoised latent: two columns, p
and q, compute it from the prediction of the network (`samplers.py`). The other columns are a solver's.
"""

from typing import NamedTuple

import numpy as np

from keras_diffusion.sampling.schedules import Levels

HISTORY = 5  # rows of h to keep: PNDM needs four, and repeats a timestep, which makes it five
COLUMNS = ("t", "p", "q", "a", "d", *(f"b{j}" for j in range(HISTORY)))
T, P, Q, A, D, B = range(6)


class Recurrence(NamedTuple):
    """Holds the result of a solver: the rows of the recurrence, without p and q.

    Args:
        rows: float64 (rows, columns), see `COLUMNS`.
        levels: `Levels` of the latent that every row starts from, and of the result.
        steps: int (rows,), the step that a row belongs to.
        noises: int (rows,), the number of the noise that a row adds.
        correlations: float64 (rows,), that of a row's noise with the noise whose number is one less, from -1 to 1.
    """

    rows: np.ndarray
    levels: Levels
    steps: np.ndarray
    noises: np.ndarray
    correlations: np.ndarray


def recurrence(levels, a, b, d=0.0, steps=None, noises=None, correlations=None):
    """Puts the columns of a solver into a `Recurrence`.

    Args:
        levels: `Levels` of the latent that every row starts from, and of the result.
        a: float (rows,).
        b: float (rows, k), for the estimates h of this row and of the k - 1 rows before it.
        d: float (rows,).
        steps: int (rows,), the step that a row belongs to, counted from 0; None makes every row a step.
        noises: int (rows,), the number of the noise that a row adds; None takes that of its step.
        correlations: float (rows,), see `Recurrence`; None is 0.

    Returns:
        The `Recurrence`.
    """
    rows = np.zeros((len(levels), len(COLUMNS)))
    rows[:, T], rows[:, A], rows[:, D] = levels.timesteps, a, d
    rows[:, B : B + b.shape[1]] = b
    steps = levels.first_step + (np.arange(len(levels)) if steps is None else steps)
    noises = steps if noises is None else noises
    correlations = np.zeros(len(rows)) if correlations is None else correlations
    return Recurrence(rows, levels, steps, noises, correlations)


def before_and_after(values):
    """Returns the values before and after each step."""
    return values[:-1], values[1:]


def as_column(values):
    """Makes a column of a vector."""
    return values[:, np.newaxis]
