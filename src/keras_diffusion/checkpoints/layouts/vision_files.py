"""Reads a CLIP vision encoder: a folder as transformers saves it, or a file with its names."""

import re
from pathlib import Path

from keras_diffusion.architectures import VISION_ENCODERS, VisionEncoderShape
from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts.files import read_json, weights
from keras_diffusion.checkpoints.mapping.image_prompt_names import VISION, vision_encoder
from keras_diffusion.checkpoints.mapping.loading import Part, load, targets, warn_of_unused
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

OPTIONS = {  # of config.json → field of `VisionEncoderShape`, and transformers' default
    "hidden_size": ("width", 768),
    "num_hidden_layers": ("layers", 12),
    "num_attention_heads": ("heads", 12),
    "intermediate_size": ("hidden", 3072),
    "projection_dim": ("projection", 512),
    "hidden_act": ("activation", "quick_gelu"),
    "patch_size": ("patch", 32),
    "image_size": ("side", 224),
}
ACTIVATIONS = ("gelu", "quick_gelu")
INSIDE = re.compile(rf"({re.escape(VISION)}|visual_projection\.)")
LEFTOVERS = {f"{VISION}embeddings.position_ids"}
PROJECTION, CLASS = "visual_projection.weight", f"{VISION}embeddings.class_embedding"
LAYER = re.compile(rf"{re.escape(VISION)}encoder\.layers\.(\d{{1,3}})\.")


class VisionFiles:
    """A vision encoder as `CLIPVisionModelWithProjection.save_pretrained` writes it, or in one file.

    Args:
        path: A folder with config.json and model.safetensors or pytorch_model.bin, or one around a folder
            "image_encoder" of that kind. Or a file, safetensors or a pickle, with the names of transformers.

    Attributes:
        path: The folder or the file, a `Path`.
        shape: The `VisionEncoderShape`.

    Raises:
        CorruptCheckpointError: If there is nothing to read, or it is damaged.
        CheckpointMismatchError: If it is no CLIP vision encoder, or a file alone is of an unknown one.
    """

    def __init__(self, path):
        self.path = Path(path)
        inner = self.path / "image_encoder"
        self.path = (inner if inner.is_dir() else self.path).resolve()
        if not self.path.exists():
            raise CorruptCheckpointError(f"There is no image encoder. Received: image_encoder={str(path)!r:.200}")
        paths = weights(self.path, "model") if self.path.is_dir() else [self.path]
        self._tensors = {name: tensor for each in paths for name, tensor in tensor_index.index(each).items()}
        if not {PROJECTION, CLASS} <= self._tensors.keys():
            raise CheckpointMismatchError(
                f"This is no vision encoder of CLIP, which holds {PROJECTION!r} and {CLASS!r}. Give the image encoder "
                f"that the IP-Adapter was made for. Received: image_encoder={str(path)!r:.200}"
            )
        config = self.path / "config.json"
        self.shape = _described(read_json(config)) if config.is_file() else _known(self._tensors)

    def load(self, network):
        """Fills a `VisionEncoder` with the weights: all of them or, on an error, none.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If a file is damaged.
        """
        known = LEFTOVERS | warn_of_unused(self.path, self._tensors, INSIDE, LEFTOVERS)
        load([Part("image encoder", self._tensors, targets(network, vision_encoder(self.shape)), known)])


def _described(config):
    """The shape that a config.json describes, also one of a whole CLIP model."""
    config = {**config, **config["vision_config"]} if isinstance(config.get("vision_config"), dict) else config
    values = {field: config.get(option, default) for option, (field, default) in OPTIONS.items()}
    activation, numbers = values.pop("activation"), values.values()
    whole = all(type(x) is int and 0 < x <= 2**14 for x in numbers)
    if not whole or activation not in ACTIVATIONS or values["width"] % values["heads"]:
        raise CheckpointMismatchError(
            f"The config.json of an image encoder must have whole numbers and an activation of {', '.join(ACTIVATIONS)}"
            f". Received: {values | {'activation': activation}!r:.300}"
        )
    return VisionEncoderShape(**values, activation=activation)


def _known(tensors):
    """The shape in the table that tensors without a config.json have."""
    layers = 1 + max((int(found[1]) for name in tensors if (found := LAYER.match(name))), default=-1)
    width, projection = (_first(tensors[name].shape) for name in (CLASS, PROJECTION))
    for shape in VISION_ENCODERS.values():
        if (shape.width, shape.projection, shape.layers) == (width, projection, layers):
            return shape
    known = ", ".join(f"{name} ({shape.width} wide, {shape.layers} layers)" for name, shape in VISION_ENCODERS.items())
    raise CheckpointMismatchError(
        f"An image encoder without a config.json must be one of {known}. Received: {width} wide, {layers} layers"
    )


def _first(shape):
    """The first side of a shape; 0 if it has none."""
    return shape[0] if shape else 0
