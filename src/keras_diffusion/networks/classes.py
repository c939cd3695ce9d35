"""Names the networks of a model, in one table."""

from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder

CLASSES = {
    "text_encoder": TextEncoder,
    "diffusion_model": DiffusionModel,
    "decoder": Decoder,
    "image_encoder": ImageEncoder,
}


def name_of(network):
    """Returns the name of a network's class in `CLASSES`, or None."""
    return next((name for name, cls in CLASSES.items() if isinstance(network, cls)), None)
