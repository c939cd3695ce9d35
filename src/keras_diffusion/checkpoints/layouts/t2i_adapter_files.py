"""Reads a T2I-adapter: a folder of diffusers, or a file with the names of diffusers or of TencentARC/T2I-Adapter."""

import os
import re
from itertools import count
from pathlib import Path

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.files import read_json, weights
from keras_diffusion.checkpoints.mapping.loading import Part, families, load
from keras_diffusion.checkpoints.mapping.paths import targets_by_path
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.t2i_adapter import KINDS, T2IAdapterShape, expected

PREFIX = "adapter."  # of diffusers' names
ORIGINAL = re.compile(r"body\.(\d{1,3})\.(block1|block2|in_conv)\.(weight|bias)")  # the blocks are in one list
ORIGINAL_LIGHT = re.compile(r"(body\.\d{1,3})\.body\.(\d{1,3}\.block[12]\.(?:weight|bias))")
BLOCKS = 2  # residual blocks for each feature map in original files of the full kinds


class T2IAdapterFiles:
    """A T2I-adapter of one of `KINDS`.

    Args:
        path: A folder as `save_pretrained` of diffusers writes it; or a file, safetensors or a pickle.
        architecture: The `Architecture` of the model it is to steer.

    Attributes:
        path: The folder or file, a `Path`.
        shape: The `T2IAdapterShape`.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        CorruptCheckpointError: If there is nothing to read, or it is damaged.
        UnsafeCheckpointError: If a pickle asks for more than values.
        CheckpointMismatchError: If it is no T2I-adapter, or one for another model.
    """

    def __init__(self, path, architecture):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"A T2I-adapter is given as a folder or a file. Received: path={path!r:.200}")
        if not os.path.exists(path):
            raise CorruptCheckpointError(f"There is no such folder or file. Received: path={str(path)!r:.200}")
        self.path = Path(path)
        described = (self.path / "config.json").is_file()
        config = read_json(self.path / "config.json") if described else {}
        paths = weights(self.path, "diffusion_pytorch_model") if self.path.is_dir() else [self.path]
        tensors = {name: tensor for path in paths for name, tensor in tensor_index.index(path).items()}
        self._tensors = _renamed(tensors)
        if not any(name.startswith("body.0.resnets.0.") for name in self._tensors):
            raise CheckpointMismatchError(
                f"This is no T2I-adapter, it looks like {', '.join(families(tensors)) or 'nothing known'}. "
                f"Received: path={str(self.path)!r:.200}"
            )
        self.shape = _shape(self._tensors, config, architecture.autoencoder.factor)
        ours, theirs = expected(self.shape.kind, architecture), (self.shape.factor, self.shape.outputs)
        if theirs != ours:
            problem = "{2} pixels a position and widths {3}, not {0} and {1}".format(*ours, *theirs)
            raise CheckpointMismatchError(
                f"The T2I-adapter ({self.shape.kind}) does not fit the model: {problem}. Give one that was made for "
                f"this model. Received: path={str(self.path)!r:.200}",
                mismatched=[problem],
            )

    def load(self, network):
        """Fills a `T2IAdapter` of this `shape`: all of it or, on an error, nothing.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If a file is damaged.
        """
        load([Part("T2I-adapter", self._tensors, targets_by_path(network), set())])


def _renamed(tensors):
    """The tensors by their names in diffusers, without the prefix."""
    names = {name: name.removeprefix(PREFIX) for name in tensors}
    if any(ORIGINAL_LIGHT.fullmatch(name) for name in tensors):
        names = {name: ORIGINAL_LIGHT.sub(r"\1.resnets.\2", name) for name in tensors}
    elif any("resnets" not in name and ORIGINAL.fullmatch(name) for name in tensors if "block1" in name):
        names = {name: ORIGINAL.sub(_nested, name) for name in tensors}
    return {names[name]: tensor for name, tensor in tensors.items()}


def _nested(found):
    place, inner = divmod(int(found[1]), BLOCKS)
    return f"body.{place}.{'' if found[2] == 'in_conv' else f'resnets.{inner}.'}{found[2]}.{found[3]}"


def _shape(tensors, config, factor):
    """The shape that tensors and a config.json have; what neither says, a model with this latent factor does."""
    light = "conv_in.weight" not in tensors
    first = "body.0.in_conv.weight" if light else "conv_in.weight"
    last = "out_conv.weight" if light else "resnets.0.block1.weight"
    try:
        seen = tensors[first].shape[1]
        widths = [
            tensors[f"body.{i}.{last}"].shape[0] for i in range(_length(tensors, "body.{}.resnets.0.block1.weight"))
        ]
        blocks = _length(tensors, "body.0.resnets.{}.block1.weight")
    except (KeyError, IndexError) as error:
        raise CheckpointMismatchError(
            f"The T2I-adapter lacks a tensor, or has one of another shape: {error}"
        ) from error
    kind = config.get("adapter_type") or _kind(light, seen, factor)
    if kind not in KINDS or (kind == "light_adapter") != light:
        raise CheckpointMismatchError(f"A T2I-adapter is one of {', '.join(KINDS)}. Received: {kind!r:.200}")
    pixels = config.get("downscale_factor") or (2 * factor if kind == "full_adapter_xl" else factor)
    if not isinstance(pixels, int) or pixels < 1 or seen not in (pixels**2, 3 * pixels**2):
        raise CheckpointMismatchError(
            f"A T2I-adapter sees {factor}×{factor} pixels of 1 or 3 channels for each latent, or twice as many along a "
            f"side for SDXL. Received: {seen} inputs"
        )
    return T2IAdapterShape(kind, tuple(widths[:-1] if light else widths), blocks, pixels, seen // pixels**2)


def _kind(light, seen, factor):
    """The kind of an adapter that sees so many numbers at a position."""
    if light:
        return "light_adapter"
    return "full_adapter_xl" if seen in ((2 * factor) ** 2, 3 * (2 * factor) ** 2) else "full_adapter"


def _length(tensors, pattern):
    return next(i for i in count() if pattern.format(i) not in tensors)
