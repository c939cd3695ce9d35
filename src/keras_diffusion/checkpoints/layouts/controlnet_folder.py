"""Reads a ControlNet as diffusers stores it: a folder with config.json and one file of weights."""

import os
from dataclasses import replace
from pathlib import Path

from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.layouts.diffusers_options import OPTIONS, PER_LEVEL, WIDTH, WITHOUT_EFFECT
from keras_diffusion.checkpoints.layouts.files import read_json, weights
from keras_diffusion.checkpoints.mapping.loading import Part, load, targets
from keras_diffusion.checkpoints.mapping.names import controlnet
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

UNET = OPTIONS["unet"]
WIDTHS = "conditioning_embedding_out_channels"
OWN = {  # option → (value where the file has none, as in diffusers; values understood)
    "in_channels": UNET["in_channels"],
    "use_linear_projection": UNET["use_linear_projection"],
    "conditioning_channels": (3, (3,)),
    WIDTHS: ([16, 32, 96, 256], WIDTH),
    "controlnet_conditioning_channel_order": ("rgb", ("rgb", "bgr")),
}
LISTS = PER_LEVEL | {WIDTHS}
OF_SOME = {"mid_block_type", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}
NO_WAY_UP = {
    "out_channels",
    "up_block_types",
    "reverse_transformer_layers_per_block",
    "conv_out_kernel",
    "sample_size",
}  # options of the diffusion model alone


class ControlNetFolder:
    """A ControlNet in a folder, as `save_pretrained` of diffusers writes it.

    Args:
        path: The folder.
        architecture: The `Architecture` of the model it is to steer.

    Attributes:
        path: The folder, a `Path`.
        options: The arguments to build the `ControlNet` with.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        CorruptCheckpointError: If config.json is missing or damaged.
        CheckpointMismatchError: If it is not a ControlNet for this architecture; every option that differs is named.
    """

    def __init__(self, path, architecture):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"A ControlNet is given as a folder. Received: path={path!r:.200}")
        self.path = Path(path)
        if not os.path.isfile(self.path / "config.json"):
            raise CorruptCheckpointError(
                "This is no ControlNet: config.json is missing. Give a folder in diffusers layout, which holds it and "
                f"diffusion_pytorch_model.safetensors. Received: path={str(path)!r:.200}"
            )
        config = read_json(self.path / "config.json")
        if problems := list(_problems(config, architecture)):
            raise CheckpointMismatchError(
                "\n  ".join(["The ControlNet does not fit the model:", *problems])
                + f"\nGive one that was made for this model. Received: path={str(path)!r:.200}",
                mismatched=problems,
            )
        values = {option: default for option, (default, _) in OWN.items()} | _given(config)
        shape = replace(
            architecture.diffusion_model,
            in_channels=values["in_channels"],
            linear_projection=values["use_linear_projection"],
        )
        self.options = {
            "architecture": replace(architecture, diffusion_model=shape),
            "conditioning": tuple(values[WIDTHS]),
            "channel_order": values["controlnet_conditioning_channel_order"],
        }

    def load(self, network):
        """Fills a `ControlNet` with the weights of the folder: all of them or, on an error, none.

        Args:
            network: One built with the folder's `options`.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file refers to one elsewhere.
        """
        tensors = {}
        for path in weights(self.path, "diffusion_pytorch_model"):
            for name, tensor in safetensors.index(path).items():
                if name in tensors:
                    raise CorruptCheckpointError(f"{path} repeats a tensor of another file. Received: {name!r:.200}")
                tensors[name] = tensor
        wanted = targets(network, controlnet(self.options["architecture"], self.options["conditioning"]))
        load([Part("ControlNet", tensors, wanted, set())])


def _problems(config, architecture):
    """Yields a line for every option that is not understood or that the model has otherwise."""
    unet, config = to_diffusers(architecture)["unet"], _given(config)
    needed = {option: UNET[option][0] for option in unet.keys() & UNET.keys()}  # also those that the file leaves out
    for option, value in {**needed, **config}.items():
        values = value if isinstance(value, list) and option in LISTS else [value]
        if option in OWN:
            fits, allowed = values and all(value in OWN[option][1] for value in values), OWN[option][1]
        elif option in NO_WAY_UP | WITHOUT_EFFECT or option.startswith("_"):
            continue
        elif option in unet:
            allowed = unet[option]
            fits = (value if isinstance(value, list) or option not in PER_LEVEL else values * len(allowed)) == allowed
        else:
            default, understood = UNET.get(option, (False, (False,)))
            allowed = (default,) if option in OF_SOME else understood
            fits = value in allowed
        if not fits:
            allowed = " or ".join(map(repr, allowed)) if isinstance(allowed, tuple) else allowed
            yield f"{option}={value!r:.200}, only {allowed} is possible"
    widths, factor = config.get(WIDTHS, OWN[WIDTHS][0]), architecture.autoencoder.factor
    if not (isinstance(widths, list) and 2 ** (len(widths) - 1) == factor):
        yield f"{WIDTHS}={widths!r:.200}, only a list of {factor.bit_length()} widths is possible"


def _given(config):
    """The options that a configuration file sets: to diffusers, None is its default."""
    return {option: value for option, value in config.items() if value is not None}
