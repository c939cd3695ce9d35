"""Measures what is faster and not the same: time saved, and the distance of the pictures of the bundled model.

    python benchmarks/approximations.py
"""

import argparse
import time

import numpy as np

from keras_diffusion import StableDiffusion

PROMPTS = "red apple, strawberry, pizza, doughnut, grinning face, robot, ghost, cat face, fox, panda".split(", ")
OPTIONS = [{}, *({"guidance_interval": interval} for interval in ((0.2, 1.0), (0.0, 0.8), (0.2, 0.8), (0.0, 0.5)))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    model = StableDiffusion.from_preset("emoji")

    def draw(options):
        start = time.process_time()
        given = {"num_steps": arguments.steps, "unconditional_guidance_scale": 3.0, "seed": 0, "verbose": 0}
        images = model.text_to_image(PROMPTS, **given, **options)
        return time.process_time() - start, images.astype(float)

    _, exact = draw({})  # and compiles
    for options in OPTIONS:
        draw(options)
    turns = [[draw(options) for options in OPTIONS] for _ in range(arguments.rounds)]
    for options, column in zip(OPTIONS, zip(*turns, strict=True), strict=True):
        seconds = np.median([seconds for seconds, _ in column])
        error = np.square(column[0][1] - exact).mean((1, 2, 3))
        decibel = np.mean(-10 * np.log10(np.maximum(error, 1e-9) / 255**2))
        print(f"{options or 'exact'!s:40}{seconds:8.2f} CPU s{decibel:8.1f} dB")


if __name__ == "__main__":
    main()
