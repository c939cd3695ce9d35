"""Uses one model from many threads at once: every image must be that of a state the model was in.

    python -m tests.system.stress                                            # 100,000 operations of 8 threads
    KERAS_BACKEND=jax python -m tests.system.stress --minutes 3 --seed 7     # or as many as fit into three minutes

The threads draw, load LoRAs and take them out, assign decoders, pickle and unload, in an order drawn from the seed. The
states are all sets of the LoRAs with all decoders; the image of each is drawn before by one thread. A line of JSON says
what happened; the exit code is not 0 if an image is of no state, or if the weights at the end are not those at the
beginning, bit for bit.
"""

import argparse
import json
import math
import pickle
import random
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from itertools import product
from pathlib import Path

from keras_diffusion import StableDiffusion
from keras_diffusion.engines.engine import checksum
from keras_diffusion.networks.decoder import Decoder

from ..golden import lora, networks

OPTIONS = {"num_steps": 2, "img_height": 8, "img_width": 8, "verbose": 0}
LORAS = ({}, {"peft": 1.0}, {"kohya": -2.0}, {"peft": 1.0, "kohya": -2.0})
WITH_LORAS = ("text_encoder", "diffusion_model")
ROUND = 25  # operations of each thread between two looks at the weights


class Stress:
    """A model, and what it draws in each of its states."""

    def __init__(self, folder):
        model = StableDiffusion(preset=lora.ARCHITECTURE)
        for name in (*WITH_LORAS, "decoder"):
            networks.fill(getattr(model, name), name, lora.ARCHITECTURE)
        model.save_to_preset(Path(folder) / "model")
        self.model = StableDiffusion.from_preset(Path(folder) / "model")
        self.decoders, loaded = [Decoder(architecture=lora.ARCHITECTURE)], self.model.decoder
        self.counts, self.wrong, self.counting = Counter(), [], threading.Lock()
        self.images, self.weights = {}, {}
        for decoder, scales in product((*self.decoders, loaded), LORAS):
            self.model.decoder = decoder
            for name, scale in scales.items():
                self.model.load_lora(lora.FILES[name], scale, name)
            self.images[tuple(scales), decoder] = self.draw().tobytes()
            self.weights[frozenset(scales)] = self.sums(self.model)
            self.model.unload_lora()
        assert len(set(self.images.values())) == len(self.images)
        assert len(set(self.weights.values())) == len(self.weights)

    def draw(self, **options):
        return self.model.text_to_image("a red apple", seed=1, **OPTIONS, **options)

    def sums(self, model):
        return tuple(checksum(getattr(model, name)) for name in WITH_LORAS)

    def look(self, kind, image):
        if image.tobytes() not in self.images.values():
            self.wrong.append(f"{kind}: an image of no state")

    # ---- What a thread does

    def drawing(self, _):
        self.look("drawing", self.draw())

    def by_callback(self, _):
        self.look("by_callback", self.draw(callback=lambda *_: None))

    def by_steps(self, _):
        *_, (_, _, latents) = self.model.denoise("a red apple", seed=1, **OPTIONS)
        self.look("by_steps", self.model.decode(latents))

    def loading(self, dice):
        name, scale = dice.choice([*LORAS[-1].items()])
        self.model.load_lora(lora.FILES[name], scale, name)

    def unloading(self, dice):
        self.model.unload_lora(dice.choice([*LORAS[-1], None]))

    def assigning(self, dice):
        self.model.decoder = dice.choice(self.decoders)

    def pickling(self, _):
        if self.sums(pickle.loads(pickle.dumps(self.model))) not in self.weights.values():
            self.wrong.append("pickling: weights of no state")

    def letting_go(self, _):
        self.model.unload(discard=True)

    def work(self, dice, count):
        operations, rows = zip(*OPERATIONS.items(), strict=True)
        for operation in dice.choices(operations, [weight for weight, *_ in rows], k=count):
            _, allowed, message = OPERATIONS[operation]
            name = operation.__name__
            try:
                operation(self, dice)
            except Exception as error:
                if not (allowed and isinstance(error, allowed) and str(error).startswith(message)):
                    place = traceback.extract_tb(error.__traceback__)[-1]
                    self.wrong.append(f"{name}: {error!r:.300} at {place.filename}:{place.lineno}")
                name += " refused"
            with self.counting:
                self.counts[name] += 1

    def run(self, operations, threads, seed, minutes=math.inf):
        """Returns how often everything was done, and a list of what went wrong."""
        dice = [random.Random(f"{seed} {i}") for i in range(threads)]
        end = time.monotonic() + 60 * minutes
        for _ in range(-(-operations // (threads * ROUND))):
            if time.monotonic() > end:
                break
            workers = [threading.Thread(target=self.work, args=(each, ROUND)) for each in dice]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if self.sums(self.model) != self.weights[frozenset(self.model.loras)]:
                self.wrong.append(f"weights that are not those with {self.model.loras}")
            if self.wrong:
                break
        self.model.unload_lora()
        if self.sums(self.model) != self.weights[frozenset()]:
            self.wrong.append("weights that are not those at the beginning")
        return self.counts, self.wrong


OPERATIONS = {  # how often each, of 1000; an exception it may raise, and how its message begins
    Stress.drawing: (400, None, ""),
    Stress.by_callback: (100, None, ""),
    Stress.by_steps: (100, RuntimeError, "The weights of the model have changed"),
    Stress.loading: (195, ValueError, "A LoRA of this name is loaded"),
    Stress.unloading: (195, ValueError, "`name` must be that of a loaded LoRA"),
    Stress.assigning: (6, None, ""),
    Stress.pickling: (2, RuntimeError, "The weights of the model have changed"),
    Stress.letting_go: (2, None, ""),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operations", type=int, default=100_000, help="of all threads together")
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after these, done or not")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0, help="another one takes another order")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts, wrong = Stress(folder).run(options.operations, options.threads, options.seed, options.minutes)
    print(json.dumps({"operations": sum(counts.values()), **dict(sorted(counts.items())), "wrong": wrong}))
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
