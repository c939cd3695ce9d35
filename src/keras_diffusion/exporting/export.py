"""Writes a model in the format of another runtime."""

import os
import subprocess
import sys
import tempfile
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import keras

from keras_diffusion import arguments
from keras_diffusion.architectures import Architecture
from keras_diffusion.checkpoints.layouts.files import new_folder, require_vacant
from keras_diffusion.checkpoints.layouts.saving import describe, require_finite
from keras_diffusion.exporting.formats import FORMATS
from keras_diffusion.prompts.tokenizer import SimpleTokenizer


class Parts(NamedTuple):
    """Holds what the module of a format writes.

    Args:
        architecture: The `Architecture` of the networks.
        networks: The networks, by name.
        configs: The contents of diffusers' configuration files, by part.
        tokenizer: The `SimpleTokenizer`.
        size: (height, width) of images in pixels, for formats that need it.
        dtype: How weights are stored, "float32" or "float16".
    """

    architecture: Architecture
    networks: dict[str, Any]
    configs: dict[str, dict]
    tokenizer: SimpleTokenizer
    size: tuple[int, int]
    dtype: str


def export(model, folder, format, dtype):
    """Writes a model, see `StableDiffusion.export`."""
    row = FORMATS[arguments.choice("format", format, FORMATS)]
    arguments.choice("dtype", dtype, row.dtypes)
    if missing := [name for name in row.packages if not find_spec(name)]:
        raise ImportError(
            f"The format {format!r} needs {', '.join(missing)}; install what the formats need with: "
            f"pip install 'keras-diffusion[export]'. Received: format={format!r}"
        )
    shape = model.architecture.diffusion_model
    if shape.added or shape.guidance_width:
        raise ValueError(
            "SDXL and networks that take the guidance (LCM) cannot be exported; Stable Diffusion 1 and 2 can. "
            f"Received: {model!r:.200}"
        )
    require_vacant(folder, folder=True)
    if row.backend is None or (row.backend == keras.backend.backend() and _in_float32(model)):
        write = import_module(f"{__package__}.{format}").write
        size = model.img_height, model.img_width
        model._save(partial(_write, write, size), folder, dtype, tokenizer=model.tokenizer)
    else:
        _export_on(row.backend, model, folder, format, dtype)


def _in_float32(model):
    """Tells whether the networks of a model compute in float32, as what is exported does."""
    networks = (getattr(model, name) for name in model.architecture.networks)
    return all(network.layers[-1].compute_dtype == "float32" for network in networks)


def _write(write, size, path, architecture, tokenizer, dtype, scheduler_config, **networks):
    require_finite(networks, dtype)
    configs = describe(architecture, dtype, scheduler_config, networks)
    with new_folder(path) as folder:
        write(folder, Parts(architecture, networks, configs, tokenizer, size, dtype))


def _export_on(backend, model, folder, format, dtype):
    """Has another process do it on a backend, in float32."""
    with tempfile.TemporaryDirectory() as temporary:
        preset = Path(temporary) / "preset"
        model.save_to_preset(preset)
        command = [sys.executable, "-m", "keras_diffusion", "export", preset, folder, "--format", format]
        command += ["--dtype", dtype, "--height", str(model.img_height), "--width", str(model.img_width)]
        environment = {**os.environ, "KERAS_BACKEND": backend}
        child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if child.returncode:
        raise RuntimeError(f"A process with KERAS_BACKEND={backend}, which exports, failed: {child.stderr[-2000:]}")
