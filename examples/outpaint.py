"""Draws what lies beyond the edges of a picture: it is padded, and the padding repainted."""

from PIL import Image

from keras_diffusion import StableDiffusion
from keras_diffusion.images.reading import pad, pictures

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 25, "unconditional_guidance_scale": 3.0, "seed": 4}
picture = model.text_to_image("sunflower", **settings)
padded, mask = pad(pictures("picture", picture), top=0, bottom=0, left=32, right=32)
wide = model.inpaint(padded / 255, mask, "sunflower", **settings)[0]
Image.fromarray(wide).save("outpaint.png")
