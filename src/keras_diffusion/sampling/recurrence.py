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
    """

    rows: np.ndarray
    levels: Levels
    steps: np.ndarray


def recurrence(levels, a, b, d=0.0, steps=None):
    """Puts the columns of a solver into a `Recurrence`.

    Args:
        levels: `Levels` of the latent that every row starts from, and of the result.
        a: float (rows,).
        b: float (rows, k), for the estimates h of this row and of the k - 1 rows before it.
        d: float (rows,).
        steps: int (rows,), the step that a row belongs to; None makes every row a step.

    Returns:
        The `Recurrence`.
    """
    rows = np.zeros((len(levels), len(COLUMNS)))
    rows[:, T], rows[:, A], rows[:, D] = levels.timesteps, a, d
    rows[:, B : B + b.shape[1]] = b
    return Recurrence(rows, levels, np.arange(len(levels)) if steps is None else steps)


def before_and_after(values):
    """Returns the values before and after each step."""
    return values[:-1], values[1:]


def as_column(values):
    """Makes a column of a vector."""
    return values[:, np.newaxis]
