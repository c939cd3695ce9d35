"""The names of `keras_cv.models.stable_diffusion`."""

from keras_diffusion.models.stable_diffusion.clip_tokenizer import SimpleTokenizer as SimpleTokenizer
from keras_diffusion.models.stable_diffusion.decoder import Decoder as Decoder
from keras_diffusion.models.stable_diffusion.diffusion_model import DiffusionModel as DiffusionModel
from keras_diffusion.models.stable_diffusion.diffusion_model import DiffusionModelV2 as DiffusionModelV2
from keras_diffusion.models.stable_diffusion.image_encoder import ImageEncoder as ImageEncoder
from keras_diffusion.models.stable_diffusion.noise_scheduler import NoiseScheduler as NoiseScheduler
from keras_diffusion.models.stable_diffusion.stable_diffusion import StableDiffusion as StableDiffusion
from keras_diffusion.models.stable_diffusion.stable_diffusion import StableDiffusionV2 as StableDiffusionV2
from keras_diffusion.models.stable_diffusion.text_encoder import TextEncoder as TextEncoder
from keras_diffusion.models.stable_diffusion.text_encoder import TextEncoderV2 as TextEncoderV2
