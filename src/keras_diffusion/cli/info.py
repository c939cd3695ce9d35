"""Describes the installation, a model or an image."""

import sys
from pathlib import Path

from keras_diffusion import __version__
from keras_diffusion.cli.model import PRESETS
from keras_diffusion.engines.names import explaining_missing_backend
from keras_diffusion.images import metadata
from keras_diffusion.images.metadata import FORMATS
from keras_diffusion.terminal import quiet

LARGE = 860e6, 64 * 64  # parameters, and positions of latents, of Stable Diffusion


def info(options):
    """Describe the installation, a model or a picture: no network is built and no weight is read."""
    if options.subject is None:
        rows = of_installation()
    elif Path(options.subject).suffix.lower() in FORMATS:
        rows = metadata.read(options.subject) or {"parameters": "none"}
    else:
        rows = of_model(options.subject)
    for name, value in rows.items():
        shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(value))
        print(f"{name:16} " + shown.replace("\n", "\n".ljust(18)))


def of_installation():
    with explaining_missing_backend(), quiet():
        import keras
    from keras_diffusion.checkpoints.presets import BUNDLED
    from keras_diffusion.engines import choice
    from keras_diffusion.sampling.registry import SAMPLERS

    backend = keras.backend.backend()
    return {
        "keras-diffusion": __version__,
        "Python": sys.version.partition(" ")[0],
        "Keras": keras.__version__,
        "backend": f"{backend} {sys.modules[backend].__version__}",
        "device": str(keras.ops.zeros(()).device).rpartition("device:")[2].lower(),
        "runs by": f"{choice.choose_by_work(*LARGE)} at 512×512, {choice.choose_by_work(0, 0)} for small models",
        "presets": ", ".join(BUNDLED),
        "samplers": ", ".join(SAMPLERS),
    }


def of_model(preset):
    from keras_diffusion.checkpoints import presets

    presets.find(preset)
    with explaining_missing_backend(), quiet():
        import keras  # noqa: F401
    from keras_diffusion.checkpoints.layouts.files import naming
    from keras_diffusion.checkpoints.mapping import names
    from keras_diffusion.sampling.scheduler_config import from_scheduler_config

    found = presets.read(preset)
    parts = names.folders(found.architecture)
    parameters = {part: sum(tensor.size for tensor in found.tensors(part).values()) for part in parts}
    with naming(found.path):
        sampler, _ = from_scheduler_config(found.scheduler_config)
    return {
        "folder" if found.path.is_dir() else "file": found.path,
        "architecture": found.architecture.name,
        **{part: f"{count:,} parameters" for part, count in parameters.items()},
        "image size": f"{found.architecture.image_size} × {found.architecture.image_size}",
        "prediction type": found.architecture.prediction_type,
        "sampler": sampler,
    }


def add_arguments(command):
    command.add_argument("subject", nargs="?", help=f"{PRESETS}; or an image")
