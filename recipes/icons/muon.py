"""Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for all else, on one vector of all weights.

One vector, in which matrices of a shape are neighbours, keeps the number of operations to compile small.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
ITERATIONS = 5
MOMENTUM = 0.95
BETAS = (0.9, 0.98)
AT_ONCE = 64  # arrays joined
LARGEST_NORM = 1.0  # of all gradients together
DECAY = 0.01  # of the weights, a share of the learning rate


class Layout(NamedTuple):
    """Orders the weights in the vector: first those that Muon updates, by shape, then the others."""

    shapes: dict  # name → shape, in order
    groups: tuple  # of (number, rows, columns)
    matrices: int  # length of Muon's part

    @classmethod
    def of(cls, weights):
        """The layout for a dict of arrays."""
        shapes = {name: tuple(value.shape) for name, value in weights.items()}
        matrices = [name for name in shapes if is_matrix(name, shapes[name])]
        matrices.sort(key=lambda name: flat(shapes[name]))
        groups = {}
        for name in matrices:
            groups[flat(shapes[name])] = groups.get(flat(shapes[name]), 0) + 1
        rest = [name for name in shapes if name not in set(matrices)]
        return cls(
            {name: shapes[name] for name in (*matrices, *rest)},
            tuple((number, *shape) for shape, number in groups.items()),
            sum(int(np.prod(shapes[name])) for name in matrices),
        )

    def join(self, weights):
        """Makes the vector, in two steps, because a GPU's kernel takes some hundreds of arrays at most."""
        parts = [weights[name].reshape(-1) for name in self.shapes]
        parts = [jnp.concatenate(parts[i : i + AT_ONCE]) for i in range(0, len(parts), AT_ONCE)]
        return jnp.concatenate(lax.optimization_barrier(parts))

    def split(self, vector):
        weights, start = {}, 0
        for name, shape in self.shapes.items():
            size = int(np.prod(shape))
            weights[name] = vector[start : start + size].reshape(shape)
            start += size
        return weights


def is_matrix(name, shape):
    return len(shape) in (2, 4) and not name.endswith("embeddings")


def flat(shape):
    """The shape of a matrix, or of a convolution as a matrix of inputs by outputs."""
    return int(np.prod(shape[:-1])), shape[-1]


class State(NamedTuple):
    """Holds the moving averages of the gradients, and of their squares for AdamW."""

    first: object
    squares: object
    step: object


def start(layout, vector):
    return State(jnp.zeros_like(vector), jnp.zeros_like(vector[layout.matrices :]), jnp.zeros((), "float32"))


def update(layout, vector, gradient, state, rate):
    """Makes one step; none where a gradient is not finite.

    The root mean square of a matrix's change is a fifth of the learning rate, about that of AdamW.

    Args:
        layout: The `Layout`.
        vector: float32 weights.
        gradient: The same of the loss.
        state: What `start` or the last `update` returned.
        rate: The learning rate.

    Returns:
        The new weights and state, and whether the step was made.
    """
    norm = jnp.sqrt(jnp.sum(jnp.square(gradient)))
    finite = jnp.isfinite(norm)
    gradient = jnp.where(finite, gradient * jnp.minimum(1.0, LARGEST_NORM / (norm + 1e-6)), 0.0)
    step, middle = state.step + 1, layout.matrices
    momentum = MOMENTUM * state.first[:middle] + gradient[:middle]
    turned = orthogonal(layout, gradient[:middle] + MOMENTUM * momentum)
    mean = BETAS[0] * state.first[middle:] + (1 - BETAS[0]) * gradient[middle:]
    squares = BETAS[1] * state.squares + (1 - BETAS[1]) * jnp.square(gradient[middle:])
    deviation = jnp.sqrt(squares / (1 - BETAS[1] ** step))
    change = jnp.concatenate([turned, mean / (1 - BETAS[0] ** step) / (deviation + 1e-8)])
    new = State(jnp.concatenate([momentum, mean]), squares, step)
    new = State(*(jnp.where(finite, after, before) for after, before in zip(new, state, strict=True)))
    return jnp.where(finite, vector - rate * (change + DECAY * vector), vector), new, finite


def orthogonal(layout, vector):
    """Replaces each matrix by one near to its nearest orthogonal matrix, scaled to a root mean square of 0.2."""
    stacks, start = [], 0
    for number, rows, columns in layout.groups:
        size = number * rows * columns
        x = vector[start : start + size].reshape(number, rows, columns)
        x = x.swapaxes(1, 2) if rows > columns else x
        norm = jnp.sqrt(jnp.sum(jnp.square(x), (1, 2), keepdims=True))
        stacks.append((x / (norm + 1e-7)).astype("bfloat16"))
        start += size
    stacks = lax.fori_loop(0, ITERATIONS, lambda _, stacks: [newton_schulz(x) for x in stacks], stacks)
    parts = []
    for (_, rows, columns), x in zip(layout.groups, stacks, strict=True):
        x = x.astype("float32") * (0.2 * max(rows, columns) ** 0.5)
        parts.append((x.swapaxes(1, 2) if rows > columns else x).reshape(-1))
    return jnp.concatenate(parts)


def newton_schulz(x):
    """Brings the singular values of matrices (n, rows, columns) nearer to 1."""
    a, b, c = COEFFICIENTS
    gram = x @ x.swapaxes(1, 2)
    return a * x + (b * gram + c * (gram @ gram)) @ x
