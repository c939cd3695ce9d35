"""A second pass at twice the size: the picture is enlarged and its detail drawn anew, so that the composition stays."""

from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 40, "unconditional_guidance_scale": 3.0, "seed": 7}
small = model.text_to_image("panda", **settings)
large = model.image_to_image(small, "panda", strength=0.2, img_height=128, img_width=128, **settings)
Image.fromarray(large[0]).save("high_resolution.png")
