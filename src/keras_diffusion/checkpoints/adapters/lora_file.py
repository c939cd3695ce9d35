"""Reads files of adapters, LoRAs and what is like them: changes to the weights of many layers."""

import logging
import math
import re
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from keras_diffusion.checkpoints.adapters import layer_names, peft_config
from keras_diffusion.checkpoints.adapters.kinds import KINDS, MODIFIERS, Change, Kind, nearest, sizes
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.formats.tensors import DTYPES, Tensor, largest, read
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.names import rows
from keras_diffusion.errors import CheckpointMismatchError

OPEN_CLIP_LAYERS = 23  # that Stable Diffusion 2 computes of the 24 of ViT-H/14
LONGEST_NAME = 200  # characters that are looked at, so that no pattern takes long
ANY_LORA = "pytorch_lora_weights"  # what diffusers calls every file
TITLES = ("ss_output_name", "modelspec.title")  # in metadata
ALPHAS = ("F64", "I64")  # what an alpha may be stored in, beside `DTYPES`
UNUSED = re.compile(  # names of tensors on which no image depends
    r"bundle_emb\..+"  # words, which act when a prompt holds them
    r"|(text_encoder|lora_te1?|cond_stage_model)[._].*(text_projection|logit_scale)\b.*"
)
LAYER_OF_TEXT = re.compile(r"(?:text_encoder|text_model|lora_te1?|cond_stage_model)[._].*(?:layers|resblocks)[._](\d+)")
FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "a BOFT, which is not supported": r"\.boft_|\.oft_blocks \(\d+, \d+, \d+, \d+\)",
    "an OFT, which is not supported": r"\.oft_",
    "a GLoRA, which is not supported": r"\.([ab][12]\.weight|glora_\w+) ",
    "an (IA)³, which is not supported": r"\.(on_input|ia3_l)\b",
    "an AdaLoRA, which is not supported": r"\.lora_E\b",
    "a T-LoRA, which is not supported": r"\.(lambda_layer|q_layer|p_layer)\b",
    "a VeRA, which is not supported": r"vera_lambda",
    "a LoRA of cloneofsimo's lora, which is not supported; convert it": r"^(unet|text_encoder):\d+:(up|down) ",
    "a LoRA for SDXL": r"lora_te2_|text_encoder_2\.|attn2.to_k\S++ \(\d+, 2048",
    "a LoRA for Stable Diffusion 3 or Flux": r"^transformer\.|lora_transformer_|lora_unet_(joint|double|single)_block",
    "a LoRA for Stable Diffusion 2": r"attn2.to_k\S++((?<=down\.weight)|(?<=A\.weight)) \(\d+, 1024",
    "a LoRA for Stable Diffusion 1": r"attn2.to_k\S++((?<=down\.weight)|(?<=A\.weight)) \(\d+, 768",
}

logger = logging.getLogger(__name__)


class Group(NamedTuple):
    """The tensors of a file that change one tensor of a network.

    Args:
        key: The name of the tensor to change, "network/name".
        kind: The `Kind` that fits them best.
        parts: A dict from parts to `Tensor`; those of `MODIFIERS` too.
        alpha: The `Tensor` of the layer's alpha, or None.
    """

    key: str
    kind: Kind
    parts: dict[str, Tensor]
    alpha: Tensor | None

    @property
    def of_kind(self):
        return {part: self.parts[part] for part in self.kind.parts}

    @property
    def magnitude(self):
        """The part that holds the magnitudes of a DoRA, and its `Tensor`; or (None, None)."""
        return next(((part, x) for part, x in self.parts.items() if part in MODIFIERS - {"alpha"}), (None, None))


def targets(networks):
    """Lists the tensors that an adapter can change: a dict from "network/name" to `loading.Target`."""
    names = {f"{layer}.{tensor}" for layer in layer_names.layers(networks) for tensor in KINDS}
    return {
        key: target
        for name, network in networks.items()
        for target in loading.targets(network, rows(name, network.architecture))
        if (key := f"{name}/{target.name}") in names
    }


def weights(networks):
    """Lists the weights that a LoRA can change: a dict from "network/layer" to `loading.Target`."""
    return {
        key.removesuffix(".weight"): target
        for key, target in targets(networks).items()
        if key.endswith(".weight") and len(target.shape) > 1
    }


def titles(path):
    """Lists what a file is called: its name and, if that says nothing, its folder's, and what its metadata say."""
    path = Path(path)
    name = path.parent.name if path.stem == ANY_LORA else path.stem
    said = tensor_index.metadata(path)
    return [name, *(said[key] for key in TITLES if key in said)]


def changes(path, networks):
    """Reads what a file changes.

    Args:
        path: The file, safetensors or a pickle.
        networks: A dict from some names in `layer_names.SPELLINGS` to networks.

    Returns:
        A dict from keys of `targets` to `Change`.

    Raises:
        CheckpointMismatchError: If anything does not fit: every missing, unexpected, mis-shaped or not finite tensor
            is named.
        CorruptCheckpointError: If the file is damaged or of another kind.
    """
    tensors, declared, known = tensor_index.index(path), peft_config.declarations(path), targets(networks)
    layers, unexpected, unused = by_layer(tensors, networks)
    groups = list(grouped(layers))
    missing = [f"{x.key.rpartition('.')[0]}: {part}" for x in groups for part in x.kind.parts.keys() - x.parts.keys()]
    for x in groups:
        wanted = MODIFIERS | x.kind.parts.keys() if x.key in known else ()
        unexpected += [tensor.name for part, tensor in x.parts.items() if part not in wanted]
        unexpected += [x.parts["magnitude"].name] if {"dora_scale", "magnitude"} <= x.parts.keys() else []
    whole = [x for x in groups if x.key in known and x.parts.keys() >= x.kind.parts.keys()]
    mismatched = [line for x in whole for line in header_problems(x, known[x.key].shape)]
    if not (missing or unexpected or mismatched):
        read_later = [tensor for x in groups for tensor in x.parts.values()]
        mismatched = [f"{x.name}: holds {top}" for x in read_later if not math.isfinite(top := magnitude(x))]
    if missing or unexpected or mismatched or not groups:
        raise mismatch(path, tensors, sorted(missing), unexpected, mismatched)
    if unused:
        listed = ", ".join(map(loading.printable, unused[:10])) + (", …" if len(unused) > 10 else "")
        logger.warning("%s holds %d tensors that change no image, ignored: %s", path, len(unused), listed)
    ranks = {x.key.rpartition(".")[0]: rank for x in groups if (rank := found_rank(x, known[x.key].shape))}
    return {x.key: change(x, known[x.key].shape, declared, ranks.get(x.key.rpartition(".")[0])) for x in groups}


def by_layer(tensors, networks):
    """Sorts tensors by the layer that they change.

    Returns:
        A dict from "network/layer" to a dict from parts to `Tensor`, and the names of unexpected and unused tensors.
    """
    spelled, layers, unexpected, unused = layer_names.all_spellings(networks), {}, [], []
    names = {name: layer_names.split(name) for name in tensors}
    without_alphas = {layer for layer, part in names.values() if part != "alpha"}
    depth = networks["text_encoder"].architecture.text_encoder.layers if "text_encoder" in networks else None
    for name, (layer, part) in names.items():
        if (key := spelled.get(layer)) and part and part not in layers.get(key, {}):
            layers.setdefault(key, {})[part] = tensors[name]
            continue
        above = LAYER_OF_TEXT.search(name[:LONGEST_NAME])
        above = above and int(above[1]) == depth == OPEN_CLIP_LAYERS
        alone = not key and part == "alpha" and layer not in without_alphas
        (unused if above or alone or UNUSED.fullmatch(name[:LONGEST_NAME]) else unexpected).append(name)
    return layers, unexpected, unused


def grouped(layers):
    """Yields a `Group` for each tensor that is changed."""
    for layer, given in layers.items():
        for tensor, kinds in KINDS.items():
            possible = {part for kind in kinds for part in kind.parts} | (MODIFIERS if tensor == "weight" else set())
            if parts := {part: x for part, x in given.items() if part in possible}:
                kind = nearest(kinds, parts.keys() - MODIFIERS)
                yield Group(f"{layer}.{tensor}", kind, parts, given.get("alpha"))


def header_problems(group, shape):
    """Yields why tensors cannot be those that change one of some shape, by their headers."""
    for part, tensor in group.parts.items():
        dtypes = [*DTYPES, *ALPHAS] if part == "alpha" else [*DTYPES]
        if tensor.dtype not in dtypes:
            yield f"{tensor.name}: dtype {tensor.dtype}, not one of {', '.join(dtypes)}"
    _, wrong = sizes(group.kind, {part: tensor.shape for part, tensor in group.of_kind.items()}, shape)
    if group.alpha is not None and group.alpha.size != 1:
        wrong["alpha"] = ()
    part, tensor = group.magnitude
    if part and magnitude_shape(part, tensor.shape, shape) is None:
        wrong[part] = shape[:1]
    for part in wrong.keys() & group.parts.keys():
        yield f"{group.parts[part].name}: shape {group.parts[part].shape}, not {wrong[part]}"


def magnitude_shape(part, stored, shape):
    """The shape (out, 1, …) or (1, in, 1, …) by which a DoRA's magnitudes scale a weight, or None if they cannot.

    peft's are of outputs, whatever their shape; LyCORIS' `dora_scale` says by its shape which of the two.
    """
    outputs, inputs = (shape[0], *[1] * (len(shape) - 1)), (1, *shape[1:2], *[1] * (len(shape) - 2))
    if part == "magnitude":
        return outputs if math.prod(stored) == shape[0] else None
    return outputs if stored in (outputs, shape[:1]) else inputs if stored == inputs else None


def mismatch(path, tensors, missing, unexpected, mismatched):
    """Makes the error that names every tensor."""
    groups = {"missing": missing, "unexpected": unexpected, "mismatched": mismatched}
    names = [f"{group}: {loading.printable(name)}" for group, names in groups.items() for name in names]
    lora = any(layer_names.split(name)[1] for name in tensors)
    families = loading.families(tensors, FAMILIES if lora else FAMILIES | loading.FAMILIES)
    message = [
        f"The LoRA does not fit the model, nothing was changed: {len(names)} of its tensors are wrong.",
        *(f"It looks like {family}." for family in islice(families, 1)),
        *names,
        f"Give a LoRA that was trained on a model of this architecture. Received: path={str(path)!r:.200}",
    ]
    return CheckpointMismatchError("\n  ".join(message), **groups)


def magnitude(tensor):
    """Returns the largest magnitude in a tensor, or NaN if it holds one."""
    return largest(tensor) if tensor.dtype in DTYPES else abs(number(tensor))


def number(tensor):
    """Reads the value of an alpha."""
    return read(tensor).item()


def found_rank(group, shape):
    """Returns the rank of a change, or None if it has none."""
    return sizes(group.kind, {part: tensor.shape for part, tensor in group.of_kind.items()}, shape)[0].get("r")


def change(group, shape, declared, rank):
    """Reads the tensors of a group, which change a tensor of some shape."""
    parts = {part: read(tensor) for part, tensor in group.of_kind.items()}
    part, tensor = group.magnitude
    norm = read(tensor).astype("float32").reshape(magnitude_shape(part, tensor.shape, shape)) if part else None
    return Change(group.kind, parts, factor(group, declared, rank), norm)


def factor(group, declared, rank):
    """Returns alpha / rank, which multiplies a change. The file's alpha tensor takes precedence over its metadata.

    As for those who write such files, an alpha of 0 is the rank.
    """
    if not group.kind.scaled:
        return 1.0
    if group.alpha is not None:
        return (number(group.alpha) or rank) / rank if rank else 1.0
    network, _, name = group.key.rpartition(".")[0].partition("/")
    return declared[network].factor(f"text_model.{name}" if network.startswith("text_encoder") else name, rank)
