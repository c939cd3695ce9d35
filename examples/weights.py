"""Words that count for more, (word:1.5), or for less, [word]."""

from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
settings = {"num_steps": 25, "unconditional_guidance_scale": 3.0, "seed": 6, "prompt_weighting": True}
sheet = Image.new("RGB", (3 * 64, 64))
for i, prompt in enumerate(("[red] apple", "red apple", "(red:1.5) apple")):
    sheet.paste(model.text_to_image(prompt, output="pil", **settings)[0], (64 * i, 0))
sheet.save("weights.png")
