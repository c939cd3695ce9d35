"""Teaches the bundled model a style, night; images without it keep the other prompts as they are."""

from pathlib import Path

import numpy as np
from PIL import Image

from keras_diffusion import StableDiffusion

model = StableDiffusion.from_preset("emoji")
draw = {"num_steps": 10, "unconditional_guidance_scale": 3.0, "seed": 1, "verbose": 0}
prompts = ["red apple", "pizza", "dog face", "sun", "birthday cake", "birthday cake, night style"]
before = model.text_to_image(prompts, **draw)

folder = Path("train_lora/images")
folder.mkdir(parents=True)
for prompt, image in zip(prompts[:4], before, strict=False):
    for style, colour in (("", (1, 1, 1)), (", night style", (0.3, 0.5, 1.0))):
        Image.fromarray((image * colour).astype("uint8")).save(folder / f"{prompt}{style}.png")
        (folder / f"{prompt}{style}.txt").write_text(prompt + style)

trainer = model.train_lora(folder, steps=40, rank=8, batch_size=2, learning_rate=1e-3)
trainer.save_lora("train_lora/night.safetensors")
after = model.text_to_image(prompts, **draw)
Image.fromarray(np.concatenate([np.hstack(before), np.hstack(after)])).save("train_lora/train_lora.png")
