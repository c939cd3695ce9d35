"""Reads LoRA files: changes of low rank to the weights of many layers.

Source: Hu et al. 2021, arXiv:2106.09685, section 4.1: W + alpha / rank · up @ down. The names are those of diffusers
and peft, or of networks/lora.py in kohya-ss/sd-scripts; a kernel between the halves is that of KohakuBlueleaf/LyCORIS.
"""

import json
import math
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion import limits
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.formats.tensors import DTYPES, largest, read
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.names import LAYOUTS, LDM_PREFIXES, rows
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError


class Spelling(NamedTuple):
    """Describes how files spell the names of a network's layers, see `names.rows`."""

    prefixes: tuple[str, ...]  # before the name: diffusers and peft
    joined: tuple[str, ...]  # before the name with "_" for ".": kohya, and diffusers' conversion of it
    old: tuple[str, str]  # what in the name was written how until diffusers 0.16
    declared: str  # before the network's options in metadata


SPELLINGS = {
    "text_encoder": Spelling(
        prefixes=("text_encoder.text_model.", "text_encoder.", "text_model."),
        joined=("lora_te_text_model_", "lora_te1_text_model_", "lora_te_", "lora_te1_"),
        old=(r"\.(q|k|v|out)_proj$", r".to_\1"),
        declared="text_encoder.",
    ),
    "diffusion_model": Spelling(
        prefixes=("unet.", "", "diffusion_model."),
        joined=("lora_unet_",),
        old=(r"(attn\d)\.(to_[a-z]+)(\.0)?$", r"\1.processor.\2"),
        declared="unet.",
    ),
}
PARTS = {  # how the name of a tensor ends → what it is to the layer named before
    **dict.fromkeys((".lora_A.weight", ".lora_down.weight", ".lora.down.weight", "_lora.down.weight"), "down"),
    **dict.fromkeys((".lora_B.weight", ".lora_up.weight", ".lora.up.weight", "_lora.up.weight"), "up"),
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
}
WEIGHTS = {"matrix", "pointwise", "conv"}  # layouts of the tensors that a LoRA can change
ALPHAS = ("F64", "I64")  # what an alpha may be stored in, beside `DTYPES`
NESTED = r"[)\]}*+?][*+?{]|[*+?}]\)"  # repeats of repeats, in a regular expression
METADATA = "lora_adapter_metadata"  # peft's configuration in a file of diffusers
FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "a DoRA, which is not supported": r"dora_scale|lora_magnitude_vector",
    "a LoHa, which is not supported": r"\.hada_",
    "a LoKr, which is not supported": r"\.lokr_",
    "a GLoRA, which is not supported": r"\.[ab][12]\.weight ",
    "an OFT, which is not supported": r"\.oft_",
    "a difference of whole weights, which is not supported": r"\.diff(_b)? ",
    "a LoRA of cloneofsimo's lora, which is not supported; convert it": r"^(unet|text_encoder):\d+:(up|down) ",
    "a LoRA for SDXL": r"lora_te2_|text_encoder_2\.|attn2.to_k\S++ \(\d+, 2048",
    "a LoRA for Stable Diffusion 3 or Flux": r"^transformer\.|lora_transformer_|lora_unet_(joint|double|single)_block",
    "a LoRA for Stable Diffusion 2": r"attn2.to_k\S++((?<=down\.weight)|(?<=A\.weight)) \(\d+, 1024",
    "a LoRA for Stable Diffusion 1": r"attn2.to_k\S++((?<=down\.weight)|(?<=A\.weight)) \(\d+, 768",
}


class Change(NamedTuple):
    """Holds the change of one weight by a LoRA, factor · up @ down."""

    down: np.ndarray  # (rank, in) or (rank, in, height, width)
    up: np.ndarray  # (out, rank)
    factor: float

    def added(self, target, scale):
        """Returns the float32 array to add to a variable."""
        product = np.float32(scale * self.factor) * self.up @ self.down.reshape(len(self.down), -1)
        return LAYOUTS[target.layout][0](product.reshape(target.shape))


def weights(networks):
    """Lists the weights that a LoRA can change: a dict from "network/layer" to `loading.Target`."""
    return {
        f"{name}/{target.name.removesuffix('.weight')}": target
        for name, network in networks.items()
        for target in loading.targets(network, rows(name, network.architecture))
        if target.layout in WEIGHTS
    }


def spellings(key):
    """Yields what files call a layer that `weights` lists."""
    network, _, layer = key.partition("/")
    prefixes, joined, old, _ = SPELLINGS[network]
    for prefix in joined:
        yield prefix + layer.replace(".", "_")
    for prefix in prefixes:
        yield prefix + layer
        yield prefix + re.sub(*old, layer)


def original_spellings(architecture):
    """The names of the UNet's layers in the original (LDM) layout, dotted and joined: a dict to keys of `weights`."""
    names = {}
    for row in rows("diffusion_model", architecture):
        if row.layout in WEIGHTS:
            key = f"diffusion_model/{row.diffusers.removesuffix('.weight')}"
            dotted = row.ldm.removesuffix(".weight")
            bare = dotted.removeprefix(LDM_PREFIXES["unet"])
            spelled = (dotted, f"diffusion_model.{bare}", f"unet.{bare}", "lora_unet_" + bare.replace(".", "_"))
            names |= dict.fromkeys(spelled, key)
    return names


def canonical(name):
    """The name of a tensor without what peft's own files put around it: the model's prefix, the adapter's name."""
    return re.sub(r"(lora_[AB])\.default(_\d+)?\.", r"\1.", name.removeprefix("base_model.model."))


def changes(path, targets, architecture=None):
    """Reads what a LoRA file changes.

    Args:
        path: The file, safetensors or a pickle.
        targets: What `weights` lists.
        architecture: The `Architecture` of the diffusion model, to know the original's names of its layers.

    Returns:
        A dict from keys of `targets` to `Change`.

    Raises:
        CheckpointMismatchError: If anything does not fit: every missing, unexpected, mis-shaped or not finite tensor
            is named.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    tensors, declared = tensor_index.index(path), declarations(path)
    layers = original_spellings(architecture) if architecture else {}
    layers |= {spelling: key for key in targets for spelling in spellings(key)}
    found, unexpected = {}, []
    for name, tensor in tensors.items():
        bare = canonical(name)
        ending = next(filter(bare.endswith, PARTS), "")
        key, part = layers.get(bare.removesuffix(ending)), PARTS.get(ending)
        if key is None or part is None or part in found.get(key, {}):
            unexpected.append(name)
        else:
            found.setdefault(key, {})[part] = tensor
    missing = [f"{key}: {half}" for key, parts in found.items() for half in ("down", "up") if half not in parts]
    whole = {key: parts for key, parts in found.items() if parts.keys() >= {"down", "up"}}
    mismatched = [line for key, parts in whole.items() for line in unlike(parts, targets[key])]
    if found and not (missing or unexpected or mismatched):
        mismatched = [f"{name}: holds {top}" for name, x in tensors.items() if not math.isfinite(top := magnitude(x))]
    if missing or unexpected or mismatched or not found:
        raise mismatch(path, tensors, missing, unexpected, mismatched)
    return {key: change(parts, factor(key, parts, declared)) for key, parts in found.items()}


def unlike(parts, target):
    """Yields why tensors cannot be those that change a weight, by their headers."""
    out, into, *kernel = target.shape
    rank = max((1, *parts["down"].shape[:1]))
    shapes = {"down": (rank, into, *kernel), "up": (out, rank), "alpha": ()}
    if "mid" in parts:
        shapes |= {"down": (rank, into), "mid": (rank, rank, *kernel)}
    for part, tensor in parts.items():
        dtypes = [*DTYPES, *ALPHAS] if part == "alpha" else [*DTYPES]
        if tensor.dtype not in dtypes:
            yield f"{tensor.name}: dtype {tensor.dtype}, not one of {', '.join(dtypes)}"
        shape = () if part == "alpha" and tensor.size == 1 else tensor.shape
        if loading.without_unit_axes(shape) != loading.without_unit_axes(shapes[part]):
            yield f"{tensor.name}: shape {tensor.shape}, not {shapes[part]}"


def mismatch(path, tensors, missing, unexpected, mismatched):
    """The error that names everything."""
    groups = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    names = [f"{group}: {loading.shown(name)}" for group, names in groups.items() for name in names]
    lora = any(name.endswith(ending) for name in tensors for ending in PARTS)
    families = loading.families(tensors, FAMILIES if lora else FAMILIES | loading.FAMILIES)
    message = [
        f"The LoRA does not fit the model, nothing was changed: {len(names)} of its tensors are wrong.",
        *(f"It looks like {family}." for family in islice(families, 1)),
        *names,
        f"Give a LoRA that was trained on a model of this architecture. Received: path={str(path)!r:.200}",
    ]
    return CheckpointMismatchError("\n  ".join(message), **groups)


def magnitude(tensor):
    """The largest magnitude in a tensor, NaN where it holds one."""
    return largest(tensor) if tensor.dtype in DTYPES else abs(number(tensor))


def number(tensor):
    """The value of an alpha."""
    return read(tensor).item()


def change(parts, factor):
    """Reads the tensors that change a weight; a kernel between the halves becomes part of the first one."""
    down, up = read(parts["down"]), read(parts["up"])
    if "mid" in parts:
        mid = read(parts["mid"]).astype("float32")  # (rank, rank, height, width)
        down = np.moveaxis(np.tensordot(mid, down.reshape(down.shape[:2]), (1, 0)), -1, 1)
    return Change(down, up.reshape(up.shape[:2]), factor)


def factor(key, parts, declared):
    """Returns alpha / rank, the factor of up @ down. The file's alpha tensor takes precedence over its metadata."""
    rank = parts["down"].shape[0]
    if "alpha" in parts:
        return number(parts["alpha"]) / rank
    network, _, layer = key.partition("/")
    alpha, patterns, root = declared[network]
    full = f"text_model.{layer}" if network == "text_encoder" else layer
    alpha = next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", full)), alpha)
    return 1.0 if alpha is None else alpha / (math.sqrt(rank) if root else rank)


def declarations(path):
    """Reads the metadata, or peft's file beside: network → (alpha, alphas by pattern, whether to divide by √rank)."""
    text, beside = tensor_index.metadata(path).get(METADATA), Path(path).with_name("adapter_config.json")
    own = text is None and Path(path).stem == "adapter_model" and beside.is_file()  # peft's, of whichever network
    try:
        options = json.loads(beside.read_bytes()[: limits.JSON] if own else text or ("{}" if text is None else ""))
        if own:
            prefixes = [spelling.declared for spelling in SPELLINGS.values()]
            options = {prefix + key: value for prefix in prefixes for key, value in options.items()}
        return {
            network: (
                finite(options.get(f"{spelling.declared}lora_alpha")),
                {
                    compiled(key): finite(x)
                    for key, x in (options.get(f"{spelling.declared}alpha_pattern") or {}).items()
                },
                bool(options.get(f"{spelling.declared}use_rslora")),
            )
            for network, spelling in SPELLINGS.items()
        }
    except (re.error, ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
        raise CorruptCheckpointError(f"{path} has damaged metadata. Received: {METADATA}={text!r:.200}") from error


def compiled(pattern):
    """A pattern of layers' names as peft means it, without what could take forever to match."""
    repeats = len(re.findall(r"[*+?{]", pattern))
    if len(pattern) > limits.PATTERN or repeats > limits.PATTERN_REPEATS or re.search(NESTED, pattern):
        raise ValueError(f"the pattern {pattern:.100} is too involved")
    re.compile(pattern)
    return pattern


def finite(alpha):
    if alpha is not None and not math.isfinite(alpha):
        raise ValueError(f"{alpha} is not finite")
    return alpha
