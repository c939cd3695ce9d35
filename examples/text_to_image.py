"""A prompt, a negative prompt and seeds: three pictures of a red apple."""

from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
images = model.text_to_image("red apple", "green", batch_size=3, seed=1, num_steps=25, unconditional_guidance_scale=3.0)
sheet = Image.new("RGB", (3 * 64, 64))
for i, image in enumerate(images):  # image i is that of seed 1 + i
    sheet.paste(Image.fromarray(image), (64 * i, 0))
sheet.save("text_to_image.png")
