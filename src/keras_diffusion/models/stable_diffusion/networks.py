"""Makes networks as KerasCV's constructors do: with the weights of Stable Diffusion, unless told otherwise."""

import logging

from keras_diffusion.checkpoints import presets
from keras_diffusion.errors import CheckpointError, DownloadError
from keras_diffusion.networks.classes import CLASSES

logger = logging.getLogger(__name__)


def constructor(network, preset, architecture, order, doc):
    """Makes a class that is called as one of KerasCV's, and gives a network of this library.

    Args:
        network: Its name in a model, such as "text_encoder".
        preset: The built-in model whose weights it gets.
        architecture: The `Architecture` of that.
        order: The names of its arguments by position.
        doc: The docstring of the class.
    """

    def new(cls, *given, name=None, download_weights=True, architecture=architecture, **options):
        options |= dict(zip(order, given, strict=False)) | ({"name": name} if name else {})
        made = CLASSES[network](architecture=architecture, **options)
        if download_weights:
            try:
                presets.read(preset).load(**{network: made})
            except (CheckpointError, DownloadError, ValueError) as error:
                logger.warning(
                    "The weights of this %s are random, because those of %r are not at hand: call "
                    "StableDiffusion.from_preset(%r) once, or `load_weights`. download_weights=False makes them random "
                    "on purpose. %.300s",
                    type(made).__name__,
                    preset,
                    preset,
                    error,
                )
        return made

    return type("".join(map(str.title, network.split("_"))), (), {"__new__": new, "__doc__": doc})
