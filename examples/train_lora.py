"""Teaches the bundled model a style that it has not seen: everything in one colour. Two minutes on two cores."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from keras_diffusion import StableDiffusion

prompts = ["red apple", "dog face", "sun", "pizza", "cat face", "tree"]
draw = {"num_steps": 15, "unconditional_guidance_scale": 3.0, "seed": 1, "verbose": 0}
model = StableDiffusion.from_preset("emoji")

with TemporaryDirectory() as folder:
    for prompt, image in zip(prompts, model.text_to_image(prompts, **draw), strict=True):
        night = np.stack([image.mean(axis=-1) * share for share in (0.3, 0.5, 1.0)], axis=-1)
        Image.fromarray(night.astype("uint8")).save(Path(folder) / f"{prompt}.png")
        (Path(folder) / f"{prompt}.txt").write_text(f"{prompt}, night style")
    before = model.text_to_image(["birthday cake", "birthday cake, night style"], **draw)
    model.train_lora(folder, steps=60, rank=8, batch_size=4, learning_rate=3e-3, verbose=0)
after = model.text_to_image(["birthday cake", "birthday cake, night style"], **draw)
Image.fromarray(np.concatenate([np.hstack(before), np.hstack(after)])).save("train_lora.png")
