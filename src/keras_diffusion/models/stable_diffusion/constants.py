"""KerasCV's module of constants: the noise schedule of Stable Diffusion."""

import numpy as np

from keras_diffusion.models.stable_diffusion.noise_scheduler import NoiseScheduler

_ALPHAS_CUMPROD = np.append(1.0, NoiseScheduler(1000, 0.00085, 0.012, "scaled_linear").alphas_cumprod).tolist()
