"""Measures what is faster and not the same, by the pictures of the bundled model.

    python benchmarks/approximations.py guidance deep_cache both      # against the same sampler without them
    python benchmarks/approximations.py samplers                      # against the limit of many steps
    python benchmarks/approximations.py both --dataset emoji.npz      # and whether they show what the prompt says

`exact` is drawn with `--steps` steps, except beside the samplers: there it is `dpmpp_2m` with 100, the limit that all
samplers without noise of their own approach from the same seed. At this size much else takes time too; `rows.py` has
the seconds of a large model.
`--dataset`, which recipes/emoji/dataset.py writes, adds the share of pictures that are right, see
recipes/emoji/evaluate.py.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

from keras_diffusion import StableDiffusion

RECIPE = Path(__file__).parents[1] / "recipes" / "emoji"
PROMPTS = "red apple, strawberry, pizza, doughnut, grinning face, robot, ghost, cat face, fox, panda".split(", ")
INTERVALS = ((0.2, 1.0), (0.0, 0.8), (0.2, 0.8), (0.0, 0.5))
SOLVERS = ("ddim", "pndm", "euler", "dpmpp_2m", "unipc")
COUNTS = (5, 8, 10, 15, 20, 25)
LIMIT = {"sampler": "dpmpp_2m", "num_steps": 100}
QUESTIONS = {  # what is compared with what
    "guidance": ({}, [{"guidance_interval": interval} for interval in INTERVALS]),
    "deep_cache": ({}, [{"deep_cache": n} for n in (2, 3, 5)]),
    "both": ({}, [{"deep_cache": n, "guidance_interval": (0.2, 1.0)} for n in (2, 3, 5)]),
    "samplers": (LIMIT, [{"sampler": sampler, "num_steps": n} for sampler in SOLVERS for n in COUNTS]),
    "fast": (LIMIT, [
        {"num_steps": 50},
        {"sampler": "dpmpp_2m", "num_steps": 20},
        {"sampler": "dpmpp_2m", "num_steps": 20, "guidance_interval": (0.2, 1.0)},
        *({"sampler": "dpmpp_2m", "num_steps": 20, "deep_cache": n} for n in (2, 3)),
        *({"sampler": "dpmpp_2m", "num_steps": 20, "guidance_interval": (0.2, 1.0), "deep_cache": n} for n in (2, 3)),
    ]),
}  # fmt: skip


def fidelity(path, count):
    """The names of some labels, and a function of one picture of each that returns how many percent are right."""
    sys.path.insert(0, str(RECIPE))
    from dataset import load
    from evaluate import evaluation_labels, measure

    dataset = load(path)
    names = dataset.label_names[: dataset.labels[dataset.base].max() + 1]
    labels = evaluation_labels(names, count)
    return [names[label] for label in labels], lambda images: measure(images, labels, dataset)["top_1"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="*", default=["guidance", "deep_cache", "both"], help=", ".join(QUESTIONS))
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--dataset", help="measure fidelity too, on --labels of its labels instead of ten prompts")
    parser.add_argument("--labels", type=int, default=40)
    arguments = parser.parse_args()
    prompts, right = fidelity(arguments.dataset, arguments.labels) if arguments.dataset else (PROMPTS, None)
    model = StableDiffusion.from_preset("emoji")

    def draw(options):
        given = {"num_steps": arguments.steps, "unconditional_guidance_scale": 3.0, "seed": 0, "verbose": 0, **options}
        start = time.process_time()
        images = model.text_to_image(prompts, **given)
        return images, time.process_time() - start

    for question in arguments.questions:
        reference, rows = QUESTIONS[question]
        draw(rows[0])  # compiles
        exact, _ = draw(reference)
        print(f"\n| {question}, {len(prompts)} prompts | dB | CPU s |{' right |' if right else ''}")
        print(f"|---|---|---|{'---|' if right else ''}")
        for options in [reference, *rows]:
            images, seconds = draw(options)
            error = np.square(images.astype(float) - exact).mean((1, 2, 3))
            decibel = np.mean(-10 * np.log10(np.maximum(error, 1e-9) / 255**2))
            cells = ["exact" if options is reference else f"{decibel:.1f}", f"{seconds:.1f}"]
            cells += [f"{right(images):.1f} %"] if right else []
            name = ", ".join(f"{key}={value}" for key, value in options.items()) or "exact"
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
