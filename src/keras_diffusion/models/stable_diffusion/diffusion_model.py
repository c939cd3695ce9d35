"""KerasCV's module of the diffusion model."""

from keras_diffusion.architectures import SD14, SD21_BASE
from keras_diffusion.models.stable_diffusion.networks import constructor

ORDER = ("img_height", "img_width", "max_text_length")
DiffusionModel = constructor(
    "diffusion_model", "sd14", SD14, ORDER, "Makes a `DiffusionModel` with the weights of SD 1.4."
)
DiffusionModelV2 = constructor(
    "diffusion_model", "sd21_base", SD21_BASE, ORDER, "Makes a `DiffusionModel` with the weights of SD 2.1."
)
