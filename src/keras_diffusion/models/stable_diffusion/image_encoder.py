"""KerasCV's module of the image encoder."""

from keras_diffusion.architectures import SD14
from keras_diffusion.models.stable_diffusion.networks import constructor

ImageEncoder = constructor(
    "image_encoder", "sd14", SD14, ("img_height", "img_width"), "Makes an `ImageEncoder` with the weights of SD 1.4."
)
