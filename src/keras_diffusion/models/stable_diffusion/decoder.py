"""KerasCV's module of the decoder."""

from keras_diffusion.architectures import SD14
from keras_diffusion.models.stable_diffusion.networks import constructor

Decoder = constructor(
    "decoder", "sd14", SD14, ("img_height", "img_width"), "Makes a `Decoder` with the weights of SD 1.4."
)
