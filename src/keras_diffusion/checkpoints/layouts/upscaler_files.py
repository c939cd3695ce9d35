"""Reads networks that enlarge images: ESRGAN, Real-ESRGAN and its compact ones, in the spellings that files have."""

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.files import naming
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.loading import Part, families, load
from keras_diffusion.checkpoints.mapping.paths import targets_by_path
from keras_diffusion.errors import CheckpointMismatchError
from keras_diffusion.networks.upscalers import CompactArchitecture, RRDBArchitecture

AVERAGED = ("params_ema.", "params-ema.", "params.")  # of the same tensors several times, the first is taken
WRAPPERS = re.compile(r"^((model|module|net_?g|generator)\.)+(?=\D)", re.IGNORECASE)  # around the network
PLACE = re.compile(r"model\.(\d{1,3})\.(weight|bias)")
OLD = re.compile(r"model\.1\.sub\.\d+\.")  # the names of 2018
SPELLINGS = (  # a name of ESRGAN's → BasicSR's
    (r"RRDB_trunk\.", "body."),
    (r"\.RDB(\d)\.", r".rdb\1."),
    (r"trunk_conv\.", "conv_body."),
    (r"upconv(\d)\.", r"conv_up\1."),
    (r"HRconv\.", "conv_hr."),
)
FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "SwinIR or HAT": r"residual_group\.|relative_position_",
    "DAT": r"^layers\.\d+\.blocks\.\d+\.attn\.",
    "SPAN": r"^block_1\.c1_r\.",
    "GFPGAN": r"^stylegan_decoder",
    "ESRGAN+, whose dense blocks have one more convolution": r"conv1x1\.",
} | {family: mark for family, mark in loading.FAMILIES.items() if "upscaler" not in family}
ALLOWED = "ESRGAN, Real-ESRGAN (RRDBNet) or one of its compact networks (SRVGGNetCompact)"


class UpscalerFile:
    """A file of a network that enlarges images.

    Args:
        path: Safetensors or a pickle (.pth).

    Attributes:
        path: The file, a `Path`.
        tensors: A dict from BasicSR's names to `Tensor`.
        architecture: The `RRDBArchitecture` or `CompactArchitecture` that the shapes of its tensors tell.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        FileNotFoundError: If there is no file.
        CorruptCheckpointError: If it is damaged.
        UnsafeCheckpointError: If a pickle asks for more than values.
        CheckpointMismatchError: If it holds anything else.
    """

    def __init__(self, path):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"An upscaler is given as a file. Received: path={path!r:.200}")
        self.path = Path(path)
        tensors = tensor_index.index(self.path)
        with naming(path):
            self.tensors = canonical(tensors)
        self.architecture = _rrdb(self.tensors) or _compact(self.tensors)
        if self.architecture is None:
            looks = next(families(tensors | self.tensors, FAMILIES), "nothing known")
            raise CheckpointMismatchError(
                f"This is no upscaler that is supported; it looks like {looks}. Give {ALLOWED}. "
                f"Received: {len(tensors)} tensors, path={str(path)!r:.200}"
            )

    def load(self, network):
        """Fills a network, built for this `architecture`: all of it or, on an error, nothing.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If the file is damaged.
        """
        load([Part("upscaler", self.tensors, targets_by_path(network), set())])


def canonical(tensors):
    """Returns tensors by the names that BasicSR gives them."""
    for prefix in AVERAGED:
        if found := {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}:
            tensors = found
            break
    unwrapped = [WRAPPERS.sub("", name) for name in tensors]
    last = max((int(place[1]) for place in map(PLACE.match, unwrapped) if place), default=0)
    rename = partial(_from_2018, last=last) if any(map(OLD.match, unwrapped)) else _from_2019
    names = list(map(rename, unwrapped))
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise CheckpointMismatchError(f"Several tensors have one name. Received: {repeated[0]!r:.200}")
    return dict(zip(names, tensors.values(), strict=True))


def _from_2018(name, last):
    """BasicSR's name for one of 2018, which counts layers, also those without tensors, up to the `last`."""
    trunk = re.fullmatch(r"model\.1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0\.(.*)", name)
    if trunk:
        return "body.{}.rdb{}.conv{}.{}".format(*trunk.groups())
    if body := re.fullmatch(r"model\.1\.sub\.\d+\.(weight|bias)", name):
        return f"conv_body.{body[1]}"
    layer = PLACE.fullmatch(name)
    if not layer:
        return name
    place = int(layer[1])
    named = {0: "conv_first", last - 2: "conv_hr", last: "conv_last"}
    return f"{named.get(place, f'conv_up{place // 3}')}.{layer[2]}"


def _from_2019(name):
    for old, new in SPELLINGS:
        name = re.sub(old, new, name)
    return name


def _shape(tensors, name, axes=4):
    """The shape of a tensor of as many axes, or None."""
    shape = tensors[name].shape if name in tensors else ()
    return shape if len(shape) == axes else None


def _pixels(channels):
    """Returns the side of the square of colour pixels that a number of channels holds."""
    return round((channels / 3) ** 0.5)


def _count(tensors, pattern, start=0):
    """Counts the names of a pattern."""
    return next(i for i in range(len(tensors) + 1) if pattern.format(start + i) not in tensors)


def _rrdb(tensors):
    """The shape of an `RRDBNet`, or None."""
    first, dense = _shape(tensors, "conv_first.weight"), _shape(tensors, "body.0.rdb1.conv1.weight")
    if not (first and dense):
        return None
    return RRDBArchitecture(
        blocks=_count(tensors, "body.{}.rdb1.conv1.weight"),
        channels=first[0],
        growth=dense[0],
        doublings=_count(tensors, "conv_up{}.weight", start=1),
        unshuffle=max(1, _pixels(first[1])),
    )


def _compact(tensors):
    """The shape of a `CompactNet`, or None."""
    first, slope = _shape(tensors, "body.0.weight"), _shape(tensors, "body.1.weight", axes=1)
    count = _count(tensors, "body.{}.weight")
    last = _shape(tensors, f"body.{count - 1}.weight")
    if not (first and slope and last):
        return None
    return CompactArchitecture(convs=(count - 3) // 2, channels=first[0], scale=max(1, _pixels(last[0])))
