"""The kinds of adapters, as data: which tensors each one stores of a layer, and what it adds to the weight.

Sources: Hu et al. 2021, arXiv:2106.09685 (LoRA); Yeh et al. 2023, arXiv:2309.14859 (LoCon, LoHa and LoKr, as in
KohakuBlueleaf/LyCORIS); Liu et al. 2024, arXiv:2402.09353 (DoRA); peft's `lora_bias`.
"""

import math
from collections.abc import Callable
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS


class Kind(NamedTuple):
    """A way to store the change of one tensor.

    Args:
        name: What it is called.
        parts: A dict from parts to their shapes, "rows columns". Letters are sizes: o outputs, i inputs and k kernel of
            the layer; r and s ranks; a · b outputs and c · d inputs. Some files join the axes of the columns.
        delta: A function of the parts, float32 (rows, columns), that returns the change, whose axes may be joined.
        scaled: Whether alpha / r multiplies it; where there is no r, the alpha and r of a configuration.
    """

    name: str
    parts: dict[str, str]
    delta: Callable[[dict[str, np.ndarray]], Any]
    scaled: bool = True

    def __reduce__(self):
        """Lets a pickle say which one it is: functions without a name have no other way into it."""
        return find, (tuple(self.parts),)


def find(parts):
    """Returns the `Kind` of these parts."""
    return next(kind for kinds in KINDS.values() for kind in kinds if tuple(kind.parts) == parts)


def tucker(mid, out, into):
    """A kernel (r, r · k) between `out` (r, o) and `into` (r, i), as (o, i · k)."""
    rank = len(mid)
    left = (out.T @ mid).reshape(out.shape[1], rank, -1)
    return np.einsum("ork,ri->oik", left, into, optimize=True).reshape(out.shape[1], -1)


FIRST = (  # of the factors of a LoKr: its parts, how they make it
    ({"w1": "a c"}, lambda x: x["w1"]),
    ({"w1_a": "a r", "w1_b": "r c"}, lambda x: x["w1_a"] @ x["w1_b"]),
)
SECOND = (
    ({"w2": "b dk"}, lambda x: x["w2"]),
    ({"w2_a": "b r", "w2_b": "r dk"}, lambda x: x["w2_a"] @ x["w2_b"]),
    ({"t2": "r rk", "w2_a": "r b", "w2_b": "r d"}, lambda x: tucker(x["t2"], x["w2_a"], x["w2_b"])),
)
WEIGHT_KINDS = (
    Kind("LoRA", {"down": "r ik", "up": "o r"}, lambda x: x["up"] @ x["down"]),
    Kind(
        "LoCon with a kernel between its halves",
        {"down": "r i", "mid": "r rk", "up": "o r"},
        lambda x: tucker(x["mid"], x["up"].T, x["down"]),
    ),
    Kind(
        "LoHa",
        {"hada_w1_a": "o r", "hada_w1_b": "r ik", "hada_w2_a": "o s", "hada_w2_b": "s ik"},
        lambda x: (x["hada_w1_a"] @ x["hada_w1_b"]) * (x["hada_w2_a"] @ x["hada_w2_b"]),
    ),
    Kind(
        "LoHa with kernels between its halves",
        {
            **{"hada_t1": "r rk", "hada_w1_a": "r o", "hada_w1_b": "r i"},
            **{"hada_t2": "s sk", "hada_w2_a": "s o", "hada_w2_b": "s i"},
        },
        lambda x: (
            tucker(x["hada_t1"], x["hada_w1_a"], x["hada_w1_b"]) * tucker(x["hada_t2"], x["hada_w2_a"], x["hada_w2_b"])
        ),
    ),
    *(
        Kind(
            "LoKr",
            {f"lokr_{part}": shape for part, shape in (first | second).items()},
            lambda x, one=one, two=two: np.kron(
                *(factor({part.removeprefix("lokr_"): values for part, values in x.items()}) for factor in (one, two))
            ),
        )
        for (first, one), (second, two) in product(FIRST, SECOND)
    ),
    Kind("full difference", {"diff": "o ik"}, lambda x: x["diff"], scaled=False),
    Kind("norm", {"w_norm": "o ik"}, lambda x: x["w_norm"], scaled=False),
)
BIAS_KINDS = (
    Kind("full difference of a bias", {"diff_b": "o ik"}, lambda x: x["diff_b"], scaled=False),
    Kind("bias of a norm", {"b_norm": "o ik"}, lambda x: x["b_norm"], scaled=False),
    Kind("bias of a LoRA", {"lora_bias": "o ik"}, lambda x: x["lora_bias"]),
)
KINDS = {"weight": WEIGHT_KINDS, "bias": BIAS_KINDS}  # tensor of a layer → what may change it
MODIFIERS = {"alpha", "dora_scale", "magnitude"}  # parts of a weight's change beside its kind's; all but alpha: DoRA
EPSILON = np.finfo("float32").eps  # added to norms, as LyCORIS does


class Change(NamedTuple):
    """The change of one tensor by an adapter.

    Args:
        kind: Its `Kind`.
        parts: The arrays of the kind's parts, of any float dtype.
        factor: What multiplies the change, alpha / rank.
        magnitude: Of a DoRA, (out, 1) or (1, in, 1): what the norm of each row or column becomes; else None.
    """

    kind: Kind
    parts: dict[str, np.ndarray]
    factor: float = 1.0
    magnitude: np.ndarray | None = None

    def added(self, target, original):
        """Computes what the adapter adds at scale 1.

        Args:
            target: The `loading.Target` of the tensor.
            original: The values of its variable without any adapter.

        Returns:
            A new float32 array of the variable's shape.
        """
        parts = {part: values.astype("float32") for part, values in self.parts.items()}
        parts = {part: values.reshape(len(values), -1) for part, values in parts.items()}
        delta = self.kind.delta(parts).reshape(target.shape)
        delta *= np.float32(self.factor)
        to_ours, to_stored = LAYOUTS[target.layout]
        if self.magnitude is not None:
            weight = to_stored(np.asarray(original, "float32"))
            merged = weight + delta
            delta = merged * (self.magnitude / norms(merged, self.magnitude.shape)) - weight
        return to_ours(delta)


def norms(weight, shape):
    """The norm of each output (out, 1, …) or each input (1, in, …) of a weight."""
    axes = tuple(axis for axis in range(weight.ndim) if axis != (0 if shape[0] == len(weight) else 1))
    return np.sqrt(np.square(weight).sum(axis=axes, keepdims=True)) + EPSILON


def nearest(kinds, parts):
    """The kind that has the most of some parts in common, and of these the one that lacks the fewest."""
    return max(
        kinds, key=lambda kind: (len(kind.parts.keys() & parts), bool(parts) and -len(kind.parts.keys() - parts))
    )


def sizes(kind, shapes, target_shape):
    """Finds the sizes that a kind's letters stand for, and what the shapes of its parts should have been.

    Args:
        kind: A `Kind`.
        shapes: The shape of each of its parts, as stored.
        target_shape: That of the tensor to change.

    Returns:
        A dict from letters to sizes, and one from the parts whose shapes do not fit to the shapes that would.
    """
    out, into, *kernel = (*target_shape, 1)[: max(2, len(target_shape))]
    known, wrong = {"o": out, "i": into, "k": math.prod(kernel)}, {}
    for part, spec in kind.parts.items():
        rows, columns = spec.split()
        first, rest = (*shapes[part], 0)[0], math.prod(shapes[part][1:])
        known.setdefault(rows, max(1, first))
        for letter in set(columns) - known.keys():
            known[letter] = max(1, rest // math.prod(known[x] for x in columns if x in known))
        expected = [known[rows]]
        for letter in columns:
            expected += kernel if letter == "k" else [known[letter]]
        if first != expected[0] or rest != math.prod(expected[1:]):
            wrong[part] = tuple(expected)
    if "a" in known and not wrong and (known["a"] * known["b"], known["c"] * known["d"]) != (out, into):
        wrong = dict.fromkeys(kind.parts, (f"factors of {out}", f"factors of {into}"))
    return known, wrong
