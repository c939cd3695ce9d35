"""Repaints the lower half of a picture; the upper half stays as it is, bit by bit."""

import numpy as np
from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 25, "unconditional_guidance_scale": 3.0, "seed": 2}
picture = model.text_to_image("grinning face", **settings)[0]
mask = np.zeros((64, 64), bool)
mask[36:, :] = True  # true, or white, is repainted
repainted = model.inpaint(picture, mask, "angry face", **settings)[0]
assert (repainted[~mask] == picture[~mask]).all()
Image.fromarray(np.hstack([picture, repainted])).save("inpaint.png")
