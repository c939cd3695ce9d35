"""Draws the pictures of the bundled model that `tests/test_emoji.py` expects on every backend.

python tests/golden/make_emoji.py
"""

from pathlib import Path

import numpy as np

from keras_diffusion import StableDiffusion

FIXTURE = Path(__file__).with_name("emoji.npz")
SETTINGS = {"num_steps": 6, "unconditional_guidance_scale": 3.0, "seed": 7, "verbose": 0}
PROMPTS = ["a slice of pizza", "red heart"]


def main():
    model = StableDiffusion.from_preset("emoji")
    np.savez_compressed(FIXTURE, images=model.text_to_image(PROMPTS, **SETTINGS))


if __name__ == "__main__":
    main()
