"""KerasCV's module of the text encoder."""

from keras_diffusion.architectures import SD14, SD21_BASE
from keras_diffusion.models.stable_diffusion.networks import constructor

ORDER = ("max_length", "vocab_size")
TextEncoder = constructor("text_encoder", "sd14", SD14, ORDER, "Makes a `TextEncoder` with the weights of SD 1.4.")
TextEncoderV2 = constructor(
    "text_encoder", "sd21_base", SD21_BASE, ORDER, "Makes a `TextEncoder` with the weights of SD 2.1."
)
