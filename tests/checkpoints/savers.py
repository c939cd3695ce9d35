"""Everything that writes files which are kept, each as a function of a path, for tests of what may go wrong."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from keras_diffusion.architectures import TINY
from keras_diffusion.checkpoints.adapters import lora_writer, textual_inversion
from keras_diffusion.checkpoints.adapters.lora_writer import Halves
from keras_diffusion.checkpoints.layouts import (
    controlnet_files,
    diffusers_folder,
    keras_files,
    single_file,
    tiny_vae_files,
)
from keras_diffusion.cli import batch, generate
from keras_diffusion.exporting import export
from keras_diffusion.images import job_settings
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.tiny_autoencoder import TinyArchitecture, TinyDecoder, TinyImageEncoder
from keras_diffusion.serving.store import Store
from keras_diffusion.training import class_images

RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 256, (64, 64, 3), "uint8")
SETTINGS = {"Prompt": "a cat", "Steps": "25", "Sampler": "Euler a", "Seed": "7", "Size": "64x64"}
HALVES = {
    f"{network}/layer.{i}": Halves(RANDOM.normal(size=(2, 64)), RANDOM.normal(size=(64, 2)))
    for network in ("text_encoder", "diffusion_model")
    for i in range(3)
}


class Saver(NamedTuple):
    """Describes what writes something.

    Args:
        name: The name of the file or the folder.
        save: A function of the path, the architecture and the networks.
        old: Whether there may be something at the path before, which it replaces.
    """

    name: str
    save: Callable
    old: bool = False


@cache
def _controlnet():
    return ControlNet(architecture=TINY, conditioning=(8, 8, 8, 8), initialize=False)


@cache
def _tiny_vae():
    shape = TinyArchitecture((1, 1, 1), 8)
    networks = TinyDecoder(architecture=shape, initialize=False), TinyImageEncoder(architecture=shape, initialize=False)
    return dict(zip(("tiny_decoder", "tiny_image_encoder"), networks, strict=True))


def _lora(path, format):
    lora_writer.save(path, HALVES, 2, TINY, format)


def _stub(folder, parts):
    for part, config in parts.configs.items():
        (folder / part).mkdir()
        (folder / part / "x.bin").write_bytes(str(config).encode() * 100)


def _batch(path):
    model = SimpleNamespace(
        text_to_image=lambda **_: IMAGE[None], defaults=SimpleNamespace(num_steps=2), sampler="ddim", loras={}
    )
    settings = job_settings.settings
    try:
        job_settings.settings = lambda *_: [SETTINGS]
        batch.draw(model, batch.Job(1, {"prompt": "a cat", "seed": 7}, "emoji", [path]))
    finally:
        job_settings.settings = settings


def _store(path):
    """Writes a file of a job, as a server does, without its database."""
    store = object.__new__(Store)
    store._files = path.parent.parent
    store.write(path.parent.name, path.name, b"an image" * 1000)


def _class_images(path):
    model = SimpleNamespace(text_to_image=lambda *_, **__: IMAGE[None])
    class_images.draw_missing(model, path.parent, "a dog", 1 + len([*path.parent.glob("*.png")]), seed=7)


SAVERS = {
    "folder": Saver("out", lambda path, small, networks: diffusers_folder.save(path, small, **networks)),
    "file": Saver("out.safetensors", lambda path, small, networks: single_file.save(path, small, **networks)),
    "Keras 2": Saver("out.h5", lambda path, small, networks: keras_files.write(path, networks["decoder"])),
    "Keras 3": Saver("out.weights.h5", lambda path, small, networks: keras_files.write(path, networks["decoder"])),
    "ControlNet": Saver("out", lambda path, *_: controlnet_files.save(path, _controlnet())),
    "tiny VAE": Saver("out", lambda path, *_: tiny_vae_files.save(path, **_tiny_vae())),
    "half a tiny VAE": Saver(
        "out.safetensors", lambda path, *_: tiny_vae_files.save(path, tiny_decoder=_tiny_vae()["tiny_decoder"])
    ),
    "LoRA of kohya": Saver("out.safetensors", lambda path, *_: _lora(path, "kohya")),
    "LoRA of diffusers": Saver("out.safetensors", lambda path, *_: _lora(path, "diffusers")),
    "LoRA of peft": Saver("out", lambda path, *_: _lora(path, "peft")),
    "embedding": Saver(
        "out.safetensors", lambda path, *_: textual_inversion.save(path, "<cat>", np.ones((4, 768), "float32"))
    ),
    "export": Saver(
        "out",
        lambda path, small, networks: export._write(_stub, (16, 16), path, small, None, "float32", None, **networks),
    ),
    "PNG": Saver("out.png", lambda path, *_: generate.save(IMAGE, path, SETTINGS), old=True),
    "JPEG": Saver("out.jpg", lambda path, *_: generate.save(IMAGE, path, SETTINGS), old=True),
    "WebP": Saver("out.webp", lambda path, *_: generate.save(IMAGE, path, SETTINGS), old=True),
    "batch": Saver("out.png", lambda path, *_: _batch(path)),
    "errors of a batch": Saver(
        batch.ERRORS,
        lambda path, *_: batch.write_errors(SimpleNamespace(output=path.parent), dict.fromkeys(range(100), "x" * 99)),
        old=True,
    ),
    "server": Saver("0.png", lambda path, *_: _store(path), old=True),
    "class images": Saver("class-7.png", lambda path, *_: _class_images(path)),
}


def left(folder):
    """All that a folder holds: the content of each file by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}
