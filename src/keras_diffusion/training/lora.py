"""Trains a LoRA: a change of low rank to the weights of many layers (Hu et al. 2021, arXiv:2106.09685)."""

import math
import re
import tempfile
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from keras_diffusion import arguments
from keras_diffusion.checkpoints.adapters import lora_file, lora_writer
from keras_diffusion.networks.operations import operation, replace_operations
from keras_diffusion.sampling import noise
from keras_diffusion.training.learners import Learner, flat

LAYERS = {  # name of a choice → pattern of the layers' names, which are those of diffusers and transformers
    "attention": r".*\.(to_q|to_k|to_v|to_out\.0|q_proj|k_proj|v_proj|out_proj)",  # diffusers' scripts
    "linear": r".*(attentions\.\d+\.|encoder\.layers\.).*",  # kohya's sd-scripts
    "all": r".*(attentions\.\d+\.|encoder\.layers\.|resnets\.\d+\.|samplers\.\d+\.).*",  # LoCon
}
START = 64  # purpose of the random numbers that the first halves start from, see `noise.uniform`


class Halves(NamedTuple):
    """Holds the two matrices of a layer; x · down · up is what they add to its output.

    Args:
        down: (in, rank), or (height, width, in, rank) for a convolution.
        up: (rank, out).
    """

    down: Any
    up: Any


class Lora(Learner):
    """Trains a LoRA; the weights of the model stay as they are.

    It adds alpha / rank · (x · down) · up to the output of a layer, so it never holds a change of a whole matrix. All
    halves lie in one variable, one after the other, so that an optimiser has one vector to change and not hundreds of
    small matrices: that is quicker to trace and to run.

    Args:
        model: The `StableDiffusion`.
        rank: Width between the halves, at least 1.
        alpha: The LoRA counts alpha / rank; None takes the rank, as diffusers does.
        layers: Which layers: "attention", "linear", "all" (convolutions too), a regular expression for the whole of a
            layer's name, or a list of the names' ends, such as ["to_q", "attn2.to_v"]; as peft's `target_modules`.
        text_encoder: Whether layers of the text encoder are among them.
        seed: Where the first halves start; the second ones start at zero.

    Raises:
        TypeError, ValueError: If an argument is wrong, no layer has such a name, or the rank is more than a layer's.
    """

    learning_rate = 1e-4  # examples/text_to_image/train_text_to_image_lora.py of diffusers
    takes_added = True

    def __init__(self, model, rank=4, alpha=None, layers="attention", text_encoder=False, seed=0):
        self.text = "tokens" if arguments.boolean("text_encoder", text_encoder) else "context"
        super().__init__(model)
        self.rank = arguments.whole_number("rank", rank, 1, 2**16)
        self.alpha = float(rank) if alpha is None else arguments.number("alpha", alpha, 1e-6, 1e6)
        names = {"diffusion_model": model.diffusion_model}
        names |= {"text_encoder": model.text_encoder} if text_encoder else {}
        self._name_in_model = next(name for name in map("training-{}".format, count(1)) if name not in model.loras)
        targets = _chosen(layers, lora_file.weights(names))
        self.targets = MappingProxyType(targets)  # of a dict, Keras would save the variables
        self.shapes, start = [], []  # of the halves, and their first values
        for i, (key, target) in enumerate(self.targets.items()):
            *window, width, out = target.variable.shape
            if rank > (most := min(math.prod(window) * width, out)):
                raise ValueError(f"`rank` must be at most {most}, for the layer {key}. Received: {rank=}")
            bound = 1 / math.sqrt(math.prod(window) * width)  # Kaiming's uniform with a = √5, as kohya and peft
            self.shapes += [(*window, width, rank), (rank, out)]
            start += [(2 * noise.uniform(seed, i, self.shapes[-2], START) - 1) * bound, np.zeros((rank, out))]
        values = np.concatenate([half.ravel() for half in start]).astype("float32")
        self.values = self.add_weight(name="halves", shape=values.shape, initializer=lambda *_, **__: values)

    def tensors(self):
        return self.halves(self.values)

    def halves(self, values):
        """Returns the `Halves` of each layer, by the id of its kernel, of a vector of all of them."""
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])
        parts = ops.split(values, ends[:-1].tolist())
        halves = [ops.reshape(part, shape) for part, shape in zip(parts, self.shapes, strict=True)]
        pairs = map(Halves, halves[::2], halves[1::2])
        return {id(target.variable): pair for target, pair in zip(self.targets.values(), pairs, strict=True)}

    @contextmanager
    def applied(self, halves):
        with replace_operations(
            project=flat(self._adding(halves, operation("project"), lambda layer, x, down: ops.matmul(x, down))),
            convolve=self._adding(
                halves,
                operation("convolve"),
                lambda layer, x, down: ops.conv(x, down, strides=layer.strides, padding=layer.padding),
            ),
        ):
            yield

    def _adding(self, halves, usual, lower):
        """Returns an operation that adds to the usual one what the halves of its layer make of x."""

        def compute(layer, x):
            if id(layer.stored) not in halves:
                return usual(layer, x)
            down, up = (ops.cast(half, x.dtype) for half in halves[id(layer.stored)])
            return usual(layer, x) + self.alpha / self.rank * ops.matmul(lower(layer, x, down), up)

        return compute

    def save(self, path, format="kohya", metadata=None, dtype="float32"):
        """Writes what was learned, see `lora_writer.save`."""
        lora_writer.save(path, self.stored(), self.alpha, self.model.architecture, format, metadata, dtype)

    def stored(self):
        """The halves as files have them, by the keys of `targets`."""
        halves = keras.tree.map_structure(ops.convert_to_numpy, self.tensors())
        return {key: _stored(target, *halves[id(target.variable)]) for key, target in self.targets.items()}

    def update_model(self, scale=1.0):
        self.reset_model()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self._name_in_model}.safetensors"
            self.save(path)
            self.model.load_lora(path, scale)

    def reset_model(self):
        if self._name_in_model in self.model.loras:
            self.model.unload_lora(self._name_in_model)

    @contextmanager
    def apart(self):
        scale = self.model.loras.get(self._name_in_model)
        self.reset_model()
        try:
            yield
        finally:
            if scale is not None:
                self.update_model(scale)


def _stored(target, down, up):
    if down.ndim == 4:
        down = down.transpose(3, 2, 0, 1)
    elif target.layout == "pointwise":
        down = down.T[:, :, None, None]
    else:
        down = down.T
    return lora_writer.Halves(down, up.T.reshape(*up.T.shape, *[1] * (down.ndim - 2)))


def _chosen(layers, targets):
    """The targets whose layers are asked for."""
    named = {key: key.partition("/")[2] for key in targets}
    if isinstance(layers, str):
        try:
            pattern = re.compile(LAYERS.get(layers, layers))
        except re.error as error:
            raise ValueError(
                f"`layers` must be {', '.join(LAYERS)}, a regular expression or a list of names' ends: {error}. "
                f"Received: {layers=!r:.200}"
            ) from error
        chosen = {key: targets[key] for key, name in named.items() if pattern.fullmatch(name)}
    else:
        ends = arguments.texts("layers", layers)
        chosen = {
            key: targets[key] for key, name in named.items() if any(f".{name}".endswith(f".{end}") for end in ends)
        }
    if not chosen:
        raise ValueError(
            f"`layers` must name layers of the model, such as {', '.join(list(named.values())[:3])}. "
            f"Received: {layers=!r:.200}"
        )
    return chosen
