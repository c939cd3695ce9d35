"""Reads and writes the weights of networks as Keras stores them: KerasCV's, of Keras 2 and Keras 3, and our own."""

import re
from dataclasses import replace
from pathlib import Path

import h5py
import keras
import numpy as np

from keras_diffusion.architectures import EMOJI, SD14, SD21_BASE, TINY
from keras_diffusion.checkpoints.formats.hdf5_file import index
from keras_diffusion.checkpoints.formats.tensors import READABLE, read
from keras_diffusion.checkpoints.layouts import keras_names
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.layouts.files import KERAS_CV, keras_cv_file, naming, new_file
from keras_diffusion.checkpoints.mapping.loading import Part, Target, load, stored
from keras_diffusion.checkpoints.mapping.names import NETWORKS
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError
from keras_diffusion.networks.classes import name_of

STATE = "optimizer/vars/"
OPTIMIZER = ("optimizer/", "optimizer_weights/")  # what a trained network leaves in its file
KNOWN = {known.text_encoder.width: known for known in (SD14, SD21_BASE, EMOJI, TINY)}


def load_weights(network, filepath):
    """Fills a network with the weights of a file: all of them or, on an error, none.

    The file may be one of KerasCV's network of the same name, a `.weights.h5` or an `.h5` of Keras 2 or Keras 3, or one
    of our own network; its content decides. The optimizer's state in a file of our own is restored, as Keras does.

    Args:
        network: A `TextEncoder`, `DiffusionModel`, `ImageEncoder` or `Decoder`.
        filepath: The file.

    Raises:
        CheckpointMismatchError: If anything does not fit: every missing, unexpected, mis-shaped, not finite or
            overflowing tensor is named.
        CorruptCheckpointError: If the file is damaged.
        UnsafeCheckpointError: If the file refers to something elsewhere.
    """
    part, mismatched = _part(name_of(network), network, filepath)
    optimizer = getattr(network, "optimizer", None)
    state = {name.removeprefix(STATE): tensor for name, tensor in part.tensors.items() if name.startswith(STATE)}
    for place, variable in enumerate(optimizer.variables if optimizer and state else ()):
        tensor = state.get(str(place))
        if tensor and (tensor.shape != tuple(variable.shape) or tensor.dtype not in READABLE):
            mismatched.append(f"{STATE}{place}: {tensor.dtype} {tensor.shape}, not {variable.dtype} {variable.shape}")
    with naming(filepath):
        load([part], mismatched)
    if optimizer and state:
        optimizer.load_own_variables({place: read(tensor) for place, tensor in state.items()})


def _part(name, network, path):
    """Finds the targets of a network in a file, and the mismatches that are known already."""
    tensors = index(path)
    known = {tensor for tensor in tensors if tensor.startswith(OPTIMIZER)}
    rows, mismatched = keras_names.detect_table(name, network.architecture, tensors), []
    if not any("/vars/" in tensor for tensor in tensors) and not any(row.name in tensors for row in rows):
        # Keras 2 names layers as it likes: their order counts.
        placed = list(zip(rows, (tensor for tensor in tensors if tensor not in known), strict=False))
        rows = [row._replace(name=tensor) for row, tensor in placed] + rows[len(placed) :]
        mismatched = [f"{name}/{line}" for line in _misplaced(placed)]
    variables = {variable.path: variable for variable in network.variables}
    targets = [Target.of(variables, row.path, row.name, row.layout) for row in rows]
    return Part(name, tensors, targets, known), mismatched


def _misplaced(placed):
    """Yields a line for every weight whose name contradicts its place in the file.

    Keras numbers layers as they are made: among names that differ in numbers alone, the numbers rise.
    """
    last = {}
    for row, name in placed:
        *steps, variable = name.removesuffix(":0").split("/")
        if variable != row.path.rpartition("/")[2]:
            yield f"{name}: in the place of {row.path}"
        steps = [re.fullmatch(r"(.*?)(?:_([0-9]{1,9}))?", step, re.DOTALL).groups(0) for step in steps]
        kind, numbers = (variable, *(stem for stem, _ in steps)), [int(number) for _, number in steps]
        if numbers < last.get(kind, []):
            yield f"{name}: out of the order of its number"
        last[kind] = numbers


def write(path, network):
    """Writes the weights of a network so that KerasCV's network of the same name loads them.

    The file appears when it is complete. All weights are stored in float32.

    Args:
        path: The file. A name that ends in ".weights.h5" makes one in the layout of Keras 3, any other one in that of
            Keras 2, which both read; KerasCV's `load_weights` goes by this name too.
        network: A `TextEncoder`, `DiffusionModel`, `ImageEncoder` or `Decoder`.

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If a weight is not finite.
    """
    variables = {variable.path: variable for variable in network.variables}
    by_name = str(path).endswith(".weights.h5")
    layers = {}
    # Through a file of Python's: HDF5's own driver ends the process where the disk is full.
    with new_file(path) as temporary, open(temporary, "wb+") as content, h5py.File(content, "w") as file:
        for row in keras_names.keras_cv(name_of(network), network.architecture):
            values = Target.of(variables, row.path, row.name, row.layout).values()
            if not np.isfinite(values).all():
                raise ValueError(f"Weights must be finite. Received: {row.path} with inf or NaN")
            name = row.name if by_name else keras_names.ordered(row)
            file.create_dataset(name, data=stored(values, row.layout))
            layer, _, weight = name.partition("/")
            layers.setdefault(layer, []).append(weight)
        if not by_name:
            file.attrs.update(layer_names=list(layers), keras_version=keras.__version__)
            for layer, weights in layers.items():
                file[layer].attrs["weight_names"] = weights


class KerasCVFolder:
    """A Stable Diffusion model in a folder with KerasCV's files, one for each network.

    Args:
        path: The folder.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample"; the files do not say,
            so that None is "epsilon", as for all models of KerasCV.

    Attributes:
        path: The folder, a `Path`.
        architecture: The `Architecture` that the files are of, told by the width of the text encoder.
        scheduler_config: A dict as in a scheduler_config.json, of Stable Diffusion's schedule.

    Raises:
        CorruptCheckpointError: If the text encoder's file is missing or damaged.
        CheckpointMismatchError: If it is of no architecture that KerasCV has.
    """

    def __init__(self, path, prediction_type=None):
        self.path = Path(path)
        tensors = index(self._file("text_encoder")).values()
        widths = {tensor.shape[-1] for tensor in tensors if "embedding" in tensor.name and len(tensor.shape) == 2}
        self.architecture = next((KNOWN[width] for width in widths if width in KNOWN), None)
        if self.architecture is None:
            raise CheckpointMismatchError(
                f"{self._file('text_encoder')} is no text encoder of Stable Diffusion 1 or 2, whose embeddings are 768 "
                f"or 1024 wide. Received: {sorted(widths)!s:.200}"
            )
        if prediction_type is not None:
            self.architecture = replace(self.architecture, prediction_type=prediction_type)
        self.scheduler_config = to_diffusers(self.architecture)["scheduler"]

    def tensors(self, part):
        """The tensors of a part, by network and name: a dict of `Tensor`."""
        names = [name for name in self.architecture.networks if NETWORKS[name][0] == part]
        files = {name: keras_cv_file(self.path, name) for name in names}
        return {
            f"{network}/{name}": tensor
            for network, file in files.items()
            if file
            for name, tensor in index(file).items()
            if not name.startswith(OPTIMIZER)
        }

    def load(self, **networks):
        """Fills networks with the weights of the folder: all of them or, on an error, none.

        Args:
            **networks: Any of text_encoder, diffusion_model, image_encoder and decoder, built for this `architecture`.

        Raises:
            CheckpointMismatchError: If anything does not fit; everything is named.
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file refers to something elsewhere.
            TypeError: If a network has another name.
        """
        if unknown := sorted(networks.keys() - set(self.architecture.networks)):
            names = ", ".join(self.architecture.networks)
            raise TypeError(f"The networks must be named {names}. Received: {unknown}")
        found = [_part(name, network, self._file(name)) for name, network in networks.items()]
        load([part for part, _ in found], [line for _, lines in found for line in lines])

    def _file(self, name):
        path = keras_cv_file(self.path, name)
        if path is None:
            raise CorruptCheckpointError(
                f"The weights of the {name} are missing; their file is named {' or '.join(KERAS_CV[name])}. Received: "
                f"path={str(self.path)!r:.200}"
            )
        return path
