"""Draws what lies beyond the edges of a picture: it is padded, and the padding repainted."""

from PIL import Image

from keras_diffusion import StableDiffusion, pad

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 25, "unconditional_guidance_scale": 3.0, "seed": 4}
picture = model.text_to_image("sunflower", **settings)
padded, mask = pad(picture, top=0, bottom=0, left=32, right=32)
wide = model.inpaint(padded, mask, "sunflower", **settings)[0]
Image.fromarray(wide).save("outpaint.png")
