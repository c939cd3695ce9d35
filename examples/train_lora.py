"""Teaches the bundled model a style, night; images without it keep the other prompts as they are."""

from pathlib import Path

import numpy as np
from PIL import Image

from keras_diffusion import StableDiffusion

prompts = ["red apple", "dog face", "sun", "pizza", "cat face", "tree"]
draw = {"num_steps": 15, "unconditional_guidance_scale": 3.0, "seed": 1, "verbose": 0}
model = StableDiffusion.from_preset("emoji")
day, night = Path("train_lora/day"), Path("train_lora/night")
for folder, style, colour in ((day, "", (1, 1, 1)), (night, ", night style", (0.3, 0.5, 1.0))):
    folder.mkdir(parents=True)
    for prompt, image in zip(prompts, model.text_to_image(prompts, **draw), strict=True):
        Image.fromarray((image * colour).astype("uint8")).save(folder / f"{prompt}.png")
        (folder / f"{prompt}.txt").write_text(prompt + style)

asked = ["birthday cake", "birthday cake, night style"]
before = model.text_to_image(asked, **draw)
trainer = model.train_lora(night, class_folder=day, steps=60, batch_size=3, learning_rate=1e-3, text_encoder=True)
trainer.save_lora("train_lora/night.safetensors")
after = model.text_to_image(asked, **draw)
Image.fromarray(np.concatenate([np.hstack(before), np.hstack(after)])).save("train_lora/train_lora.png")
