"""Variations of a picture: the more strength, the more of it changes."""

from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 25, "unconditional_guidance_scale": 3.0, "seed": 3}
picture = model.text_to_image("red heart", output="pil", **settings)[0]
sheet = Image.new("RGB", (4 * 64, 64))
sheet.paste(picture)
for i, strength in enumerate((0.4, 0.6, 0.8), start=1):
    changed = model.image_to_image(picture, "blue heart", strength, output="pil", **settings)[0]
    sheet.paste(changed, (64 * i, 0))
sheet.save("image_to_image.png")
