"""From one prompt to another in eight pictures of the same noise, as an animated GIF."""

import numpy as np
from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
start, end = model.encode_text(["full moon", "red heart"])
contexts = np.linspace(start, end, 8)
noise = np.random.default_rng(0).normal(size=(16, 16, 4))
images = model.generate_image(contexts, num_steps=25, unconditional_guidance_scale=3.0, diffusion_noise=noise)
first, *others = map(Image.fromarray, images)
first.save("walk.gif", save_all=True, append_images=[*others, *others[-2::-1]], duration=150, loop=0)
