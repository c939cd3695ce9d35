"""Reads IP-Adapters and finds their image encoders.

Sources: tencent-ailab/IP-Adapter; the folders of h94/IP-Adapter, which diffusers' `load_ip_adapter` reads.
"""

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import keras

from keras_diffusion.architectures import VISION_ENCODERS
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.vision_files import VisionFiles
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.image_prompt_names import ip_adapter
from keras_diffusion.checkpoints.mapping.loading import Part, load, targets
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.ip_adapter import HEAD, KINDS, IPAdapter, IPAdapterShape
from keras_diffusion.networks.vision_encoder import EMBEDDING, VisionEncoder

SUFFIXES = (".safetensors", ".bin")  # of adapters in a folder
BESIDE = ("image_encoder", "../models/image_encoder")  # where the encoder is, from an adapter's folder
IMAGE = "image_proj."  # the prefix of what turns features into tokens
FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "an IP-Adapter FaceID, which is not supported": r"^image_proj\.(perceiver_resampler\.|proj\.2\.)",
    "a T2I-adapter, which is not supported": r"^(adapter\.)?body\.",
}
BASES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "SDXL", 1280: "SDXL's refiner"}


class Adapter(NamedTuple):
    """An IP-Adapter that is loaded.

    Args:
        network: The `IPAdapter`.
        encoder: The `VisionEncoder` whose features it reads; several adapters may share it.
        encoder_path: Where that came from.
    """

    network: IPAdapter
    encoder: VisionEncoder
    encoder_path: Path


def load_ip_adapter(path, image_encoder, architecture, dtype, loaded):
    """Loads an IP-Adapter, and its image encoder unless one that is loaded serves.

    Args:
        path: The file, or its folder.
        image_encoder: Where the image encoder is, a file or a folder; None looks beside the adapter.
        architecture: The `Architecture` of the model.
        dtype: A Keras dtype policy or its name, for both networks.
        loaded: The `Adapter`s there are.

    Returns:
        An `Adapter`.

    Raises:
        CheckpointError: If anything is missing, damaged, or does not fit.
        UnsafeCheckpointError: If a file is a pickle that asks for more than values.
    """
    path = _find(path)
    tensors = tensor_index.index(path)
    shape = replace(_read_shape(tensors), crossings=architecture.diffusion_model.crossings)
    if shape.context != architecture.diffusion_model.context:
        ours, theirs = (
            f"{BASES.get(width, 'another model')} (context {width})"
            for width in (architecture.diffusion_model.context, shape.context)
        )
        problem = f"it was made for {theirs}, not {ours}"
        raise CheckpointMismatchError(f"The IP-Adapter does not fit the model: {problem}.", mismatched=[problem])
    number = 1 + max((int(each.network.name.rpartition("_")[2]) for each in loaded), default=-1)
    network = _unfilled(IPAdapter, shape, dtype, f"ip_adapter_{number}")
    files = _find_encoder(path, image_encoder, shape, loaded)
    load([Part("IP-Adapter", tensors, targets(network, ip_adapter(shape)), set())])
    shared = next((each.encoder for each in loaded if each.encoder_path == files.path), None)
    if shared is None:
        shared = _unfilled(VisionEncoder, files.shape, dtype, f"vision_encoder_{number}")
        files.load(shared)
    return Adapter(network, shared, files.path)


def _unfilled(network, shape, dtype, name):
    """A network that waits for its first values."""
    with keras.StatelessScope(initialize_variables=False):
        return network(shape, initialize=False, dtype=dtype, name=name)


def _find(path):
    """The file of an IP-Adapter: `path` itself, or the only one in that folder."""
    path = Path(path)
    if not path.is_dir():
        return path
    files = sorted(each for each in path.iterdir() if each.suffix in SUFFIXES and each.is_file())
    if len(files) != 1:
        found = ", ".join(each.name for each in files) or "nothing"
        raise CorruptCheckpointError(f"A folder must hold one IP-Adapter; give a file instead. Received: {found:.300}")
    return files[0]


def _read_shape(tensors):
    """Tells the `IPAdapterShape` by the tensors of a file."""
    shapes = {name.removeprefix(IMAGE): tensor.shape for name, tensor in tensors.items() if name.startswith(IMAGE)}
    for mark, read in READERS.items():
        if mark in shapes:
            try:
                return read(shapes)
            except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
                raise CheckpointMismatchError(
                    f"The IP-Adapter lacks a tensor, or has one of another shape: {error!s:.200}. Fetch it again."
                ) from error
    family = next(loading.families(tensors, FAMILIES | loading.FAMILIES), "nothing known")
    raise CheckpointMismatchError(
        f"This is no IP-Adapter of a kind in {', '.join(KINDS)}: it has no tensor {IMAGE}{f' or {IMAGE}'.join(READERS)}"
        f". It looks like {family}. Give another file."
    )


def _plain(shapes):
    (rows, features), (context,) = shapes["proj.weight"], shapes["norm.weight"]
    return IPAdapterShape("plain", features, context, tokens=rows // context)


def _full(shapes):
    (width, features), (context,) = shapes["proj.0.weight"], shapes["proj.3.weight"]
    return IPAdapterShape("full", features, context, tokens=0, width=width)


def _plus(shapes):
    (_, tokens, width), (_, features) = shapes["latents"], shapes["proj_in.weight"]
    context, _ = shapes["proj_out.weight"]
    heads, hidden = shapes["layers.0.0.to_q.weight"][0] // HEAD, shapes["layers.0.1.1.weight"][0]
    depth = len({found[1] for name in shapes if (found := re.match(r"layers\.(\d+)\.", name))})
    return IPAdapterShape("plus", features, context, tokens, width, heads, depth, hidden)


READERS = {"proj.weight": _plain, "proj.3.weight": _full, "latents": _plus}  # a tensor that only one kind has


def _find_encoder(path, given, shape, loaded):
    """The files of an image encoder that gives what an adapter reads: those given, those beside it, or loaded ones."""
    usual = [*(path.parent / place for place in BESIDE), *(each.encoder_path for each in loaded)]
    places = [each for each in usual if each.exists()] if given is None else [given]
    found = [VisionFiles(place) for place in places]
    for files in found:
        if _width(files.shape, shape.kind) == shape.features:
            return files
    known = (name for name, each in VISION_ENCODERS.items() if _width(each, shape.kind) == shape.features)
    others = ", ".join(f"{files.path} with {_width(files.shape, shape.kind)}" for files in found) or "none"
    raise CheckpointMismatchError(
        f"The IP-Adapter reads an image encoder that gives {shape.features} features ({next(known, 'not a usual one')}"
        f"). Give its file or folder as `image_encoder`. Received: {others:.300}"
    )


def _width(encoder, kind):
    """Returns the number of features that a kind of IP-Adapter reads from an image encoder."""
    return encoder.projection if KINDS[kind].output == EMBEDDING else encoder.width
