"""Strict loading: everything is checked first, then all is assigned or nothing."""

import logging
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from keras import ops

from keras_diffusion.checkpoints.formats.tensors import (
    DTYPES,
    Tensor,
    bits_of_largest,
    blocks,
    float16_to_float32,
    largest,
    value_of_bits,
)
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.checkpoints.mapping.names import NETWORKS, rows
from keras_diffusion.errors import CheckpointMismatchError
from keras_diffusion.networks.int8 import quantise
from keras_diffusion.networks.keras_internals import has_value, initialize
from keras_diffusion.system import limits
from keras_diffusion.system.memory import OwnedArray, aligned_array

logger = logging.getLogger(__name__)

LIMITS = {"float16": 2.0**16 - 2.0**4, "bfloat16": 2.0**128 - 2.0**119}  # the least that rounds to infinity
THREADS = min(8, os.cpu_count() or 1)  # that read and convert at a time: NumPy lets others run meanwhile

FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "a LoRA": r"lora[_.]",
    "a textual inversion": r"^(emb_params|string_to_param\S*|<.*>) ",
    "a ControlNet": r"^controlnet_|^control_model\.",
    "a tiny autoencoder (TAESD), which is for load_tiny_vae": r"^((decoder|encoder)\.layers\.)?\d+\.conv\.\d\.weight ",
    "an upscaler (ESRGAN), which is for Upscaler.from_file": r"\.(rdb|RDB)\d\.conv\d\.",
    "AnimateDiff": r"motion_modules\.",
    "SDXL": r"add_embedding\.|^conditioner\.|attn2\.to_k\.weight \(\d+, 2048\)",
    "Stable Diffusion 3 or Flux": r"joint_blocks\.|double_blocks\.|^context_embedder\.",
    "a single file in the original (LDM) layout": r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.",
    "a UNet alone, which from_preset takes as `diffusion_model`": r"^input_blocks\.",
    "Stable Diffusion 2": r"attn2\.to_k\.weight \(\d+, 1024\)|token_embedding\.weight \(\d+, 1024\)",
    "Stable Diffusion 1": r"attn2\.to_k\.weight \(\d+, 768\)|token_embedding\.weight \(\d+, 768\)",
    "a unet": r"^time_embedding\.",
    "a vae": r"quant_conv\.",
    "a text_encoder": r"token_embedding\.",
}
SHAPES = {  # network → the field of an architecture that describes it
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "diffusion_model": "diffusion_model",
    "image_encoder": "autoencoder",
    "decoder": "autoencoder",
}
FEW = 100  # tensors
PRINTED = 200  # characters of a name
NOT_COMPUTED = {"linear_projection", "pad_token"}  # fields that do not change what a network computes


class Target(NamedTuple):
    """A variable to fill, the name of its tensor, the tensor's layout, and the variable of an int8 kernel's scale."""

    variable: Any
    name: str
    layout: str
    scale: Any = None

    @classmethod
    def of(cls, variables, path, name, layout):
        """Makes the target of a path in a dict of variables."""
        return cls(variables[path], name, layout, variables.get(f"{path}_scale"))

    @property
    def shape(self):
        """The shape of the tensor."""
        return stored(np.broadcast_to(np.float32(), self.variable.shape), self.layout).shape

    def values(self):
        """Returns the values of the variable, float32."""
        values = np.asarray(ops.convert_to_numpy(self.variable), "float32")
        return values if self.scale is None else values * ops.convert_to_numpy(self.scale)


class Part(NamedTuple):
    """Describes what is loaded from one folder of a checkpoint."""

    label: str
    tensors: dict[str, Tensor]
    targets: list[Target]
    known: set[str]  # names that may be there without being wanted


def warn_of_unused(label, tensors, inside, known):
    """Lists, and names in a warning, tensors of no part of the model: nothing that is drawn can depend on them.

    Args:
        label: What to call the file.
        tensors: A dict from names to `Tensor`.
        inside: A pattern of how names within the parts begin; unknown ones of those are errors.
        known: Names that need no warning.

    Returns:
        A set of names.
    """
    names = {name for name in tensors.keys() - known if not inside.match(name)}
    if names:
        shortened = ", ".join(map(printable, sorted(names)[:10])) + (", …" if len(names) > 10 else "")
        logger.warning("%s holds %d tensors of no part of the model, ignored: %s", label, len(names), shortened)
    return names


def stored(values, layout):
    """Turns values of a variable into those of its tensor."""
    return LAYOUTS[layout][1](values)


def targets(network, rows, ldm=False):
    """Pairs the variables of a network with the rows of its table of names: with diffusers' names, or with LDM's."""
    variables = {variable.path: variable for variable in network.variables}
    if ldm:
        return [Target.of(variables, row.path, row.ldm, row.ldm_layout) for row in rows]
    return [Target.of(variables, row.path, row.diffusers, row.layout) for row in rows]


def find_targets(networks, architecture, ldm=False):
    """Says what networks need of a checkpoint.

    Args:
        networks: A dict from names in `NETWORKS` to networks.
        architecture: The `Architecture` of the checkpoint.
        ldm: Whether names are LDM's instead of diffusers'.

    Returns:
        (targets, differences): A dict from parts to lists of `Target`, and a line for each field by which a network
        would compute something else than the checkpoint's.

    Raises:
        TypeError: If a network has another name.
    """
    if unknown := sorted(networks.keys() - set(architecture.networks)):
        raise TypeError(f"The networks must be named {', '.join(architecture.networks)}. Received: {unknown}")
    found, differences = {}, []
    for name, network in networks.items():
        found.setdefault(NETWORKS[name][0], []).extend(targets(network, rows(name, network.architecture), ldm))
        ours, theirs = (asdict(getattr(a, SHAPES[name])) for a in (network.architecture, architecture))
        differences += [
            f"{name}: built with {field}={ours[field]}, the checkpoint says {theirs[field]}"
            for field in ours
            if field not in NOT_COMPUTED and ours[field] != theirs[field]
        ]
    return found, differences


def require_tensors(checkpoint, names):
    """Refuses a checkpoint that describes far larger networks than it holds, before they are built.

    Args:
        checkpoint: A `DiffusersFolder`, a `KerasCVFolder` or a `SingleFile`.
        names: The networks that are wanted.

    Raises:
        CheckpointMismatchError: If more than half of the tensors of one must be missing.
    """
    for name in names:
        part, table = NETWORKS[name]
        needed, held = sum(1 for _ in table(checkpoint.architecture)), len(checkpoint.tensors(part))
        if needed > 2 * held + FEW:
            raise CheckpointMismatchError(
                f"The {name} needs {needed} tensors. Correct its configuration, or fetch the file again. Received: "
                f"{held} tensors, path={str(checkpoint.path)!r:.200}"
            )


def load(parts, mismatched=()):
    """Assigns every variable its tensor, or none.

    Names, shapes and dtypes are compared first; where they all fit, every value is checked. Only then is anything
    assigned. Values for variables that have none are read once and kept; for variables that have values they
    are read twice, to be checked and to be assigned, a few tensors at a time.

    Args:
        parts: A list of `Part`.
        mismatched: What is known already not to fit.

    Raises:
        CheckpointMismatchError: If any tensor is missing, unexpected, of another shape or dtype, not finite, or too
            large for the dtype of its variable. Nothing has been assigned.
        CorruptCheckpointError: If a file changes while it is read.
    """
    missing, unexpected, mismatched, pairs = [], [], list(mismatched), []
    for label, tensors, wanted, known in parts:
        for target in wanted:
            if target.name in tensors:
                pairs.append((f"{label}/{target.name}", tensors[target.name], target))
            else:
                missing.append(f"{label}/{target.name}")
        names = known.union(target.name for target in wanted)
        unexpected += [f"{label}/{name}" for name in tensors if name not in names]
    mismatched += [f"{name}: {reason}" for name, *pair in pairs for reason in header_problems(*pair)]
    if missing or unexpected or mismatched:
        raise mismatch(parts, missing, unexpected, mismatched)
    with ThreadPoolExecutor(THREADS) as pool:
        examined = pool.map(_examined, pairs)
        kept, again = [], []
        for (_, tensor, target), (reasons, values) in zip(pairs, examined, strict=True):
            mismatched += reasons
            if values is None:
                again.append((tensor, target))
            else:
                kept += values
        if mismatched:
            raise mismatch(parts, missing, unexpected, mismatched)
        initialize(kept)
        list(pool.map(_replace, again))


def _examined(pair):
    """Lists why values do not fit; if their variable has none yet, they are kept and not read again."""
    name, tensor, target = pair
    values, top = (None, largest(tensor)) if has_value(target.variable) else _converted(tensor, target)
    return [f"{name}: {reason}" for reason in value_problems(top, target.variable.dtype)], values


def _replace(pair):
    tensor, target = pair
    pairs, _ = _converted(tensor, target)
    for variable, values in pairs:
        variable.assign(ops.convert_to_tensor(OwnedArray(values.pop()), variable.dtype))


def _converted(tensor, target):
    """Returns the pairs that `initialize` takes to give a target's variables a tensor, and its largest magnitude."""
    if target.scale is None:
        values, top = _read_as(target.variable.dtype, tensor, target)
        return [(target.variable, [values])], top
    values, top = _read_as("float32", tensor, target)
    with np.errstate(invalid="ignore"):  # what is not finite is refused by its magnitude
        codes, scale = quantise(values)
    return [(target.variable, [codes]), (target.scale, [scale])], top


def _read_as(dtype, tensor, target):
    """The values of a tensor in the shape of its variable, and their largest magnitude."""
    top = 0
    if keeps_strides():
        as_stored = _channels_last(target.shape, dtype)
        values = LAYOUTS[target.layout][0](as_stored)
    else:
        values = aligned_array(np.empty, target.variable.shape, dtype)
        as_stored = stored(values, target.layout)
    floats = float16_to_float32 if (tensor.dtype, dtype) == ("F16", "float32") else DTYPES[tensor.dtype][1]
    for start, bits in blocks(tensor):
        top = max(top, bits_of_largest(bits))
        rows = floats(bits).reshape(-1, *target.shape[1:])
        with np.errstate(over="ignore"):
            as_stored[start : start + len(rows)] = rows
    return values, value_of_bits(top, tensor.dtype)


def _channels_last(shape, dtype):
    """An array for a tensor (out, in, …) with its values in the order (out, …, in), which torch need not change."""
    ends, window = shape[:2], shape[2:]
    return np.moveaxis(aligned_array(np.empty, (*ends[:1], *window, *ends[1:]), dtype), -1, len(ends) - 1)


@cache
def keeps_strides():
    """Tells whether the backend takes over an array whose axes lie in memory in another order."""
    turned = aligned_array(np.zeros, (2, 3), "float32").T
    tensor = ops.convert_to_tensor(OwnedArray(turned))
    turned[2, 1] = 1
    return float(tensor[2, 1]) == 1


def header_problems(tensor, target):
    """Yields why a tensor cannot be that of a variable, by its header."""
    if tensor.dtype not in DTYPES:
        yield f"dtype {tensor.dtype}, not one of {', '.join(DTYPES)}"
    if without_unit_axes(tensor.shape) != without_unit_axes(target.shape):
        yield f"shape {tensor.shape}, not {target.shape}"


def without_unit_axes(shape):
    """The shape of a matrix, also where it is stored as a 1×1 convolution."""
    return shape[:2] if shape[2:] in ((1,), (1, 1)) else shape


def value_problems(top, dtype):
    """Yields why values cannot be those of a variable, given their largest magnitude and its dtype."""
    if not math.isfinite(top):
        yield f"holds {top}"
    elif top >= LIMITS.get(dtype, math.inf):
        yield f"holds ±{top:.6g}, which overflows in {dtype}"


def mismatch(parts, missing, unexpected, mismatched):
    """Makes the error that names every tensor."""
    groups = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    names, count = problem_lines(groups), sum(map(len, groups.values()))
    guesses = {part.label: next(families(part.tensors), None) for part in parts}
    guesses = {label: family for label, family in guesses.items() if family and f"a {label}" not in family}
    paths = [str(next(iter(part.tensors.values())).path) for part in parts if part.tensors]
    message = [
        f"The checkpoint does not fit the model, nothing was loaded: {count} of its tensors are wrong.",
        *(f"{label} looks like {family}." for label, family in guesses.items()),
        *names,
        f"Build the networks for the checkpoint's architecture, or give another one. Received: {', '.join(paths)}",
    ]
    return CheckpointMismatchError("\n  ".join(message), **groups)


def problem_lines(groups):
    """Lists the names in groups of problems, the first of very many."""
    lines = [f"{group}: {printable(name)}" for group, names in groups.items() for name in names]
    more = [f"and {len(lines) - limits.SHOWN} more, see the lists of this error"] if len(lines) > limits.SHOWN else []
    return lines[: limits.SHOWN] + more


def printable(name):
    """A name as far as a terminal should see it."""
    return (name if name.isprintable() else ascii(name))[:PRINTED]


def families(tensors, marks=FAMILIES):
    """Yields what tensors look like, by name and shape, the most telling first."""
    lines = "\n".join(f"{name} {tensor.shape}" for name, tensor in tensors.items() if len(name) <= PRINTED)
    return (family for family, mark in marks.items() if re.search(mark, lines, re.MULTILINE))
