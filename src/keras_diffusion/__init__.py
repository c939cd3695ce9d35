"""Stable Diffusion in Keras 3."""

from keras_diffusion.decoder import Decoder
from keras_diffusion.diffusion_model import DiffusionModel
from keras_diffusion.errors import (
    CheckpointError,
    CheckpointMismatchError,
    CorruptCheckpointError,
    DownloadError,
    GenerationCancelled,
    IntegrityError,
    NoSpaceError,
    NumericalError,
    OfflineError,
    UnsafeCheckpointError,
)
from keras_diffusion.image_encoder import ImageEncoder
from keras_diffusion.stable_diffusion import StableDiffusion
from keras_diffusion.text_encoder import TextEncoder
from keras_diffusion.tokenizer import SimpleTokenizer

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "CheckpointMismatchError",
    "CorruptCheckpointError",
    "Decoder",
    "DiffusionModel",
    "DownloadError",
    "GenerationCancelled",
    "ImageEncoder",
    "IntegrityError",
    "NoSpaceError",
    "NumericalError",
    "OfflineError",
    "SimpleTokenizer",
    "StableDiffusion",
    "TextEncoder",
    "UnsafeCheckpointError",
]
