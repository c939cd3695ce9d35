"""Stable Diffusion in Keras 3."""

from importlib import import_module

TYPE_CHECKING = False  # editors and type checkers take it for true; to import it from `typing` takes 10 ms
if TYPE_CHECKING:  # a test compares it with `_HOMES`
    from keras_diffusion.errors import CheckpointError as CheckpointError
    from keras_diffusion.errors import CheckpointMismatchError as CheckpointMismatchError
    from keras_diffusion.errors import CorruptCheckpointError as CorruptCheckpointError
    from keras_diffusion.errors import DownloadError as DownloadError
    from keras_diffusion.errors import FlaggedImagesError as FlaggedImagesError
    from keras_diffusion.errors import GenerationCancelled as GenerationCancelled
    from keras_diffusion.errors import IntegrityError as IntegrityError
    from keras_diffusion.errors import NoSpaceError as NoSpaceError
    from keras_diffusion.errors import NumericalError as NumericalError
    from keras_diffusion.errors import OfflineError as OfflineError
    from keras_diffusion.errors import UnsafeCheckpointError as UnsafeCheckpointError
    from keras_diffusion.exporting.inputs import export_inputs as export_inputs
    from keras_diffusion.generation.controls import Control as Control
    from keras_diffusion.generation.image_prompts import ImagePrompt as ImagePrompt
    from keras_diffusion.generation.options import Options as Options
    from keras_diffusion.generation.texts import EncodedText as EncodedText
    from keras_diffusion.generation.upscaling import Upscaler as Upscaler
    from keras_diffusion.images.contact_sheet import contact_sheet as contact_sheet
    from keras_diffusion.images.resizing import pad as pad
    from keras_diffusion.networks.controlnet import ControlNet as ControlNet
    from keras_diffusion.networks.decoder import Decoder as Decoder
    from keras_diffusion.networks.diffusion_model import DiffusionModel as DiffusionModel
    from keras_diffusion.networks.image_encoder import ImageEncoder as ImageEncoder
    from keras_diffusion.networks.operations import replace_operations as replace_operations
    from keras_diffusion.networks.t2i_adapter import T2IAdapter as T2IAdapter
    from keras_diffusion.networks.text_encoder import TextEncoder as TextEncoder
    from keras_diffusion.prompts.tokenizer import SimpleTokenizer as SimpleTokenizer
    from keras_diffusion.sampling.registry import SAMPLERS as SAMPLERS
    from keras_diffusion.stable_diffusion import StableDiffusion as StableDiffusion

__version__ = "0.1.0"

_HOMES = {  # module → the public names it holds; it is imported when one of them is first asked for
    "exporting.inputs": ("export_inputs",),
    "generation.controls": ("Control",),
    "generation.image_prompts": ("ImagePrompt",),
    "generation.options": ("Options",),
    "generation.texts": ("EncodedText",),
    "generation.upscaling": ("Upscaler",),
    "networks.controlnet": ("ControlNet",),
    "networks.t2i_adapter": ("T2IAdapter",),
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
    "images.contact_sheet": ("contact_sheet",),
    "images.resizing": ("pad",),
    "networks.image_encoder": ("ImageEncoder",),
    "sampling.registry": ("SAMPLERS",),
    "stable_diffusion": ("StableDiffusion",),
    "networks.text_encoder": ("TextEncoder",),
    "networks.operations": ("replace_operations",),
    "prompts.tokenizer": ("SimpleTokenizer",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)


def __getattr__(name):
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from keras_diffusion.engines.names import explaining_missing_backend

    with explaining_missing_backend():
        return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)


def __dir__():
    return [*globals(), *__all__]
