"""The steps as they come: every fifth is decoded, and after twenty of twenty-five that is enough."""

from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
sheet = Image.new("RGB", (4 * 64, 64))
for step, _, latents in model.denoise("red apple", num_steps=25, unconditional_guidance_scale=3.0, seed=7):
    if step % 5 == 0:
        sheet.paste(Image.fromarray(model.decode(latents)[0]), (64 * (step // 5 - 1), 0))
    if step == 20:
        break
sheet.save("watch.png")
