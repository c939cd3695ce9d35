"""Writes LoRA files as kohya's sd-scripts, diffusers and peft name and describe them.

Sources: networks/lora.py and library/sai_model_spec.py of kohya-ss/sd-scripts; loaders/lora_base.py of diffusers;
`PeftModel.save_pretrained` of peft.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion.arguments import choice
from keras_diffusion.checkpoints.adapters import peft_config
from keras_diffusion.checkpoints.adapters.layer_names import SPELLINGS
from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.layouts.files import new_file, new_folder, write_json
from keras_diffusion.checkpoints.mapping.loading import value_problems

FORMATS = ("kohya", "diffusers", "peft")
ENDINGS = {"kohya": ("lora_down", "lora_up"), "diffusers": ("lora_A", "lora_B"), "peft": ("lora_A", "lora_B")}
PREFIXES = {"diffusion_model": "unet.", "text_encoder": "text_encoder.text_model."}  # of diffusers
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v"}  # as the model specification names them
VERSIONS = {  # width of the context → the base model, as sd-scripts and the model specification name it
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2-768-v"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}


class Halves(NamedTuple):
    """Holds the change of one weight, alpha / rank · up · down, in the layout of the files.

    Args:
        down: float (rank, in), or (rank, in, height, width).
        up: float (out, rank), or (out, rank, 1, 1).
    """

    down: np.ndarray
    up: np.ndarray


def save(path, halves, alpha, architecture, format="kohya", metadata=None, dtype="float32"):
    """Writes a LoRA.

    Args:
        path: A new .safetensors file; for "peft" a new folder, with a folder for each network if there are two.
        halves: A dict from the keys of `layer_names.layers` to `Halves`, all of one rank.
        alpha: The LoRA counts alpha / rank.
        architecture: The `Architecture` it was trained on.
        format: "kohya" (also A1111, Forge, ComfyUI), "diffusers" or "peft".
        metadata: A dict of str that says more about a file of kohya's, such as {"ss_output_name": "dog"}.
        dtype: What the values are stored in, "float32", "float16" or "bfloat16".

    Raises:
        FileExistsError: If there is something at `path`.
        ValueError: If `format` or `dtype` is another one, the name does not fit, or a value is not finite in `dtype`.
    """
    choice("format", format, FORMATS)
    choice("dtype", dtype, safetensors.NAMES)
    _require_finite(halves, dtype)
    path = Path(path)
    if format == "peft":
        _save_peft(path, halves, alpha, dtype)
        return
    if path.suffix.lower() != ".safetensors":
        raise ValueError(f"The file's name must end in .safetensors. Received: path={str(path)!r:.200}")
    [(rank, *_)] = {pair.down.shape[:1] for pair in halves.values()}
    if format == "kohya":
        described = _kohya_metadata(path, architecture, rank, alpha) | (metadata or {})
        tensors = _tensors({_kohya_name(key): pair for key, pair in halves.items()}, format)
        tensors |= {f"{_kohya_name(key)}.alpha": np.array(alpha, "float32") for key in halves}
    else:
        described = {peft_config.METADATA: json.dumps(_diffusers_metadata(halves, rank, alpha), sort_keys=True)}
        tensors = _tensors(
            {PREFIXES[key.partition("/")[0]] + key.partition("/")[2]: x for key, x in halves.items()}, format
        )
    with new_file(path) as file:
        _write(file, tensors, dtype, described)


def _save_peft(path, halves, alpha, dtype):
    """Writes a folder as peft does, for each network."""
    networks = {key.partition("/")[0] for key in halves}
    with new_folder(path) as folder:
        for network in networks:
            own = {key.partition("/")[2]: pair for key, pair in halves.items() if key.startswith(f"{network}/")}
            place = folder / PREFIXES[network].partition(".")[0] if len(networks) > 1 else folder
            write_json(place / "adapter_config.json", {"peft_type": "LORA", **_peft_config(own, alpha)})
            prefix = "base_model.model." + ("text_model." if network == "text_encoder" else "")
            _write(
                place / "adapter_model.safetensors", _tensors({prefix + k: x for k, x in own.items()}, "peft"), dtype
            )


def _tensors(halves, format):
    """Names the halves as a format does."""
    return {
        f"{name}.{ending}.weight": half
        for name, pair in halves.items()
        for ending, half in zip(ENDINGS[format], pair, strict=True)
    }


def _write(path, tensors, dtype, metadata=None):
    tensors = dict(sorted(tensors.items()))
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    safetensors.write(path, dtype, shapes, tensors.values(), metadata)


def _kohya_name(key):
    network, _, layer = key.partition("/")
    return SPELLINGS[network].joined[0] + layer.replace(".", "_")


def _kohya_metadata(path, architecture, rank, alpha):
    """Makes the metadata that sd-scripts writes, as far as they are known here."""
    version, specification = VERSIONS.get(architecture.diffusion_model.context, (architecture.name, architecture.name))
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(alpha)),
        "ss_base_model_version": version,
        "ss_output_name": path.stem,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{specification}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.prediction_type": PREDICTIONS.get(architecture.prediction_type, architecture.prediction_type),
        "modelspec.resolution": f"{architecture.image_size}x{architecture.image_size}",
        "modelspec.title": path.stem,
    }


def _peft_config(layers, alpha):
    rank = next(iter(layers.values())).down.shape[0]
    return {"r": rank, "lora_alpha": alpha, "target_modules": sorted(layers), "bias": "none", "lora_dropout": 0.0}


def _diffusers_metadata(halves, rank, alpha):
    """Makes peft's configuration of each network, under diffusers' prefixes."""
    described = {}
    for network in {key.partition("/")[0] for key in halves}:
        own = {key.partition("/")[2]: pair for key, pair in halves.items() if key.startswith(f"{network}/")}
        described |= {peft_config.PREFIXES[network] + key: value for key, value in _peft_config(own, alpha).items()}
    return described


def _require_finite(halves, dtype):
    for key, pair in halves.items():
        for half in pair:
            if any(value_problems(float(np.abs(half).max(initial=0)), dtype)):
                raise ValueError(f"A LoRA must be finite in {dtype}. Received: {key} with values that are not")
