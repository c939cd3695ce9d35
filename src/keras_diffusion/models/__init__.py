"""The names of `keras_cv.models`: of a program for KerasCV, the import line alone changes."""

from keras_diffusion.engines.names import explaining_missing_backend

with explaining_missing_backend():
    from keras_diffusion.models.stable_diffusion import StableDiffusion as StableDiffusion
    from keras_diffusion.models.stable_diffusion import StableDiffusionV2 as StableDiffusionV2
