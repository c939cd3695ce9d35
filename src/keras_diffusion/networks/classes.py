"""Names the networks of a model, in one table."""

from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.text_encoder import TextEncoder

CLASSES = {
    "text_encoder": TextEncoder,
    "text_encoder_2": TextEncoder,
    "diffusion_model": DiffusionModel,
    "decoder": Decoder,
    "image_encoder": ImageEncoder,
}


def make(name, **options):
    """Builds the network that is called `name` in `CLASSES`; the options are those of its constructor."""
    return CLASSES[name](**options, **({"part": name} if CLASSES[name] is TextEncoder else {}))


def name_of(network):
    """Returns the name of a network in `CLASSES`, or None."""
    if isinstance(network, TextEncoder):
        return network.part
    return next((name for name, cls in CLASSES.items() if isinstance(network, cls)), None)
