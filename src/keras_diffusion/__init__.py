"""Stable Diffusion in Keras 3."""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {  # module → the public names it holds; it is imported when one of them is first asked for
    "generation.controls": ("Control",),
    "networks.controlnet": ("ControlNet",),
    "networks.decoder": ("Decoder",),
    "networks.diffusion_model": ("DiffusionModel",),
    "errors": (
        "CheckpointError",
        "CheckpointMismatchError",
        "CorruptCheckpointError",
        "DownloadError",
        "FlaggedImagesError",
        "GenerationCancelled",
        "IntegrityError",
        "NoSpaceError",
        "NumericalError",
        "OfflineError",
        "UnsafeCheckpointError",
    ),
    "images.reading": ("pad",),
    "networks.image_encoder": ("ImageEncoder",),
    "sampling.samplers": ("SAMPLERS",),
    "stable_diffusion": ("StableDiffusion",),
    "networks.text_encoder": ("TextEncoder",),
    "networks.operations": ("replace_operations",),
    "prompts.tokenizer": ("SimpleTokenizer",),
}
_NETWORKS = {f"networks.{name}" for name in ("decoder", "diffusion_model", "image_encoder", "text_encoder")}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if _HOME_OF[name] in _NETWORKS:
        import_module(f"{__name__}.checkpoints.layouts.keras_files")  # lets them read files
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
