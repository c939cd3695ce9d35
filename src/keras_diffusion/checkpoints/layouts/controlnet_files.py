"""Reads and writes a ControlNet: a folder in diffusers layout, or a file with the names of diffusers or of LDM.

Source: `save_pretrained` of diffusers; `cldm` of lllyasviel/ControlNet.
"""

import os
import re
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from keras_diffusion.arguments import choice
from keras_diffusion.checkpoints.formats import safetensors, tensor_index
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.layouts.diffusers_options import OPTIONS, PER_LEVEL, WIDTH, WITHOUT_EFFECT
from keras_diffusion.checkpoints.layouts.files import new_folder, read_json, weights, write_json
from keras_diffusion.checkpoints.layouts.saving import write_weights
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.loading import Part, load, targets, warn_of_unused
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
PREFIX = re.compile(r"control_model\.")  # of every name in LDM's files, unless they hold nothing else
LDM_HINT = "input_hint_block.{}.weight"
TOLD_BY = {  # option → tensor and axis of the size that says it
    "in_channels": ("conv_in.weight", 1),
    "cross_attention_dim": ("mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", 1),
}
FAMILIES = {  # what a file looks like → what one of its lines "name shape" then contains
    "a ControlNet-LLLite, which is not supported": r"^lllite_",
    "a Control-LoRA, which is not supported": r"^lora_controlnet ",
    "a T2I-adapter, which is for load_t2i_adapter": r"^(adapter\.)?body\.",
}
LISTS = PER_LEVEL | {WIDTHS}
OF_SOME = {"mid_block_type", "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}
NO_WAY_UP = {
    "out_channels",
    "up_block_types",
    "reverse_transformer_layers_per_block",
    "conv_out_kernel",
    "sample_size",
    "time_cond_proj_dim",
}  # options of the diffusion model alone


class ControlNetFiles:
    """A ControlNet as diffusers' `save_pretrained` writes it, or in one file with the names of diffusers or of LDM.

    Args:
        path: A folder, or a file: safetensors or a pickle, also of a whole model with its ControlNet.
        architecture: The `Architecture` of the model it is to steer, which says what no file and no shape does.

    Attributes:
        path: The folder or the file, a `Path`.
        options: The arguments to build the `ControlNet` with.

    Raises:
        TypeError: If `path` is neither a str nor a path.
        CorruptCheckpointError: If there is nothing to read, or it is damaged.
        UnsafeCheckpointError: If a pickle asks for more than values.
        CheckpointMismatchError: If it is not a ControlNet for this architecture; every option that differs is named.
    """

    def __init__(self, path, architecture):
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"A ControlNet is given as a folder or a file. Received: path={path!r:.200}")
        self.path = Path(path)
        described = os.path.isfile(self.path / "config.json")
        config = (
            read_json(self.path / "config.json") if described else _inferred(self.path, self._tensors, architecture)
        )
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
            guidance_width=0,
        )
        self.options = {
            "architecture": replace(architecture, diffusion_model=shape),
            "conditioning": tuple(values[WIDTHS]),
            "channel_order": values["controlnet_conditioning_channel_order"],
        }

    @cached_property
    def _tensors(self):
        """The tensors by name, without LDM's prefix; those of a model around the ControlNet are left out."""
        if not self.path.exists():
            raise CorruptCheckpointError(
                "There is no ControlNet. Give a folder in diffusers layout, which holds config.json and "
                f"diffusion_pytorch_model.safetensors, or a file. Received: path={str(self.path)!r:.200}"
            )
        paths = weights(self.path, "diffusion_pytorch_model") if self.path.is_dir() else [self.path]
        tensors = {}
        for path in paths:
            for name, tensor in tensor_index.index(path).items():
                if name in tensors:
                    raise CorruptCheckpointError(f"{path} repeats a tensor of another file. Received: {name!r:.200}")
                tensors[name] = tensor
        if any(map(PREFIX.match, tensors)):
            unused = warn_of_unused(self.path, tensors, PREFIX, set())
            tensors = {PREFIX.sub("", name): tensor for name, tensor in tensors.items() if name not in unused}
        return tensors

    def load(self, network):
        """Fills a `ControlNet` with the weights: all of them or, on an error, none.

        Args:
            network: One built with these `options`.

        Raises:
            CheckpointMismatchError: If anything does not fit; every tensor is named.
            CorruptCheckpointError: If a file is missing or damaged.
            UnsafeCheckpointError: If a file refers to one elsewhere, or is a pickle that asks for more than values.
        """
        rows = controlnet(self.options["architecture"], self.options["conditioning"])
        wanted = targets(network, rows, ldm=LDM_HINT.format(0) in self._tensors)
        load([Part("ControlNet", self._tensors, wanted, set())])


def save(path, network, dtype="float32"):
    """Writes a ControlNet as a folder that `ControlNetModel.from_pretrained` of diffusers loads.

    Args:
        path: The folder; it must not exist yet.
        network: A `ControlNet`.
        dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If `dtype` is another one, or a weight is not finite in it.
    """
    choice("dtype", dtype, safetensors.NAMES)
    architecture, options = network.architecture, network.get_config()
    config = {option: x for option, x in to_diffusers(architecture)["unet"].items() if option not in NO_WAY_UP}
    config |= {
        "_class_name": "ControlNetModel",
        "conditioning_channels": 3,
        WIDTHS: list(options["conditioning"]),
        "controlnet_conditioning_channel_order": options["channel_order"],
    }
    with new_folder(path) as folder:
        write_json(folder / "config.json", config)
        wanted = targets(network, controlnet(architecture, options["conditioning"]))
        write_weights(folder / "diffusion_pytorch_model.safetensors", wanted, dtype)


def _inferred(path, tensors, architecture):
    """The configuration of a ControlNet in a file that has none, from the shapes of its tensors and the model's."""
    config = {option: x for option, x in to_diffusers(architecture)["unet"].items() if option not in NO_WAY_UP}
    names = {
        row.diffusers: row.ldm for row in controlnet(architecture, [0] * architecture.autoencoder.factor.bit_length())
    }
    shapes = {name: tensors[x].shape for name, ldm in names.items() for x in (name, ldm) if x in tensors}
    hints = [name for name in names if name.startswith("controlnet_cond_embedding.") and name.endswith(".weight")]
    if "controlnet_cond_embedding.conv_in.weight" not in shapes:
        families = ", ".join(loading.families(tensors, FAMILIES | loading.FAMILIES)) or "nothing known"
        raise CheckpointMismatchError(
            f"This is no ControlNet of Stable Diffusion 1 or 2, it looks like {families}. Give a ControlNet's folder "
            f"or file. Received: path={str(path)!r:.200}"
        )
    if all(len(shapes.get(name, ())) == 4 for name in hints):
        inner = [shapes[name] for name in hints[:-1]]
        config[WIDTHS] = [inner[0][0], *(shape[0] for shape in inner[2::2])]
    for option, (name, axis) in TOLD_BY.items():
        if name in shapes and len(shapes[name]) > axis:
            config[option] = shapes[name][axis]
    projection = next((shape for name, shape in shapes.items() if name.endswith(".proj_in.weight")), (0,) * 4)
    return config | {"use_linear_projection": len(projection) == 2}


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
