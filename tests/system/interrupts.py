"""Interrupts a model at random lines of the library: it is then as before, or as it would have been afterwards.

    python -m tests.system.interrupts                                           # 200 moments of each operation
    python -m tests.system.interrupts --operation load_lora --count 20 --seed 7

A moment is a line of the library that the operation comes by; there it raises KeyboardInterrupt or MemoryError. A line
of JSON says what happened; the exit code is not 0 if the model draws an image of neither state, or says that it is in
another one than it draws with. Lines of system/locks.py are left out: what holds a lock may not be interrupted there.
"""

import argparse
import json
import random
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import numpy as np

import keras_diffusion
from keras_diffusion import StableDiffusion
from keras_diffusion.checkpoints.adapters import textual_inversion

from ..golden import lora, networks

OPTIONS = {"seed": 1, "num_steps": 2, "img_height": 8, "img_width": 8, "verbose": 0}
PROMPT = "a red <apple>"
LIBRARY = str(Path(keras_diffusion.__file__).parent)
FAULTS = KeyboardInterrupt, MemoryError


class Lines:
    """Counts the lines of the library that a block comes by, and raises a fault at one of them."""

    def __init__(self, fault=None, at=None):
        self.count, self.fault, self.at = 0, fault, at

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_):
        sys.settrace(self.before)

    def _call(self, frame, *_):
        name = frame.f_code.co_filename
        return self._line if name.startswith(LIBRARY) and not name.endswith("locks.py") else None

    def _line(self, _, event, __):
        if event == "line":
            self.count += 1
            if self.count == self.at:
                raise self.fault
        return self._line


class Interrupts:
    """A model with one LoRA, and files for it to load."""

    def __init__(self, folder):
        self.folder = Path(folder)
        model = StableDiffusion(preset=lora.ARCHITECTURE)
        for name in ("text_encoder", "diffusion_model", "decoder"):
            networks.fill(getattr(model, name), name, lora.ARCHITECTURE)
        model.save_to_preset(self.folder / "model")
        self.model = StableDiffusion.from_preset(self.folder / "model")
        textual_inversion.save(self.folder / "apple.safetensors", "<apple>", np.full((1, 16), 2.0, "float32"))
        self.model.load_lora(lora.FILES["kohya"], -2, "kohya")
        self.model.lora_folder = lora.HERE

    def draw(self, prompt=PROMPT):
        return self.model.text_to_image(prompt, prompt_weighting=True, **OPTIONS).tobytes()

    def look(self):
        """What the model says that it is, and what it draws."""
        said = self.model.loras, sorted(self.model.tokenizer.added_tokens), len(self.model.text_encoder.variables)
        return repr(said), self.draw()

    # ---- Operations: each has a way back

    def drawing(self):
        self.draw()

    def by_tag(self):
        self.draw(f"{PROMPT} <lora:lora_peft:1>")

    def load_lora(self):
        self.model.load_lora(lora.FILES["peft"], name="peft")

    def unload_lora(self):
        self.model.unload_lora("kohya")

    def set_scale(self):
        self.model.set_lora_scale("kohya", 1)

    def learn_word(self):
        self.model.load_textual_inversion(self.folder / "apple.safetensors")

    def save(self):
        with tempfile.TemporaryDirectory() as folder:
            try:
                self.model.save_to_preset(Path(folder) / "out")
            except FAULTS:
                assert not list(Path(folder).iterdir()), "something is left"
                raise

    def back(self, kept):
        """Makes the model what it was."""
        if "kohya" in self.model.loras:
            self.model.set_lora_scale("kohya", -2)
        else:
            self.model.load_lora(lora.FILES["kohya"], -2, "kohya")
        for name in self.model.loras.keys() - {"kohya"}:
            self.model.unload_lora(name)
        vars(self.model).update(kept)

    def interrupt(self, operation, count, seed):
        """Returns how often each state was found, and a list of what went wrong."""
        run, before = getattr(self, operation), self.look()
        kept = {name: vars(self.model)[name] for name in ("text_encoder", "tokenizer")}
        tokenizer_state = dict(vars(kept["tokenizer"]))
        with Lines() as lines:
            run()
        after, found, wrong = self.look(), {"before": 0, "after": 0}, []

        def back():
            vars(kept["tokenizer"]).update(tokenizer_state)
            self.back(kept)

        back()
        dice = random.Random(f"{operation} {seed}")
        for _ in range(count):
            at, fault = dice.randint(1, lines.count), dice.choice(FAULTS)
            try:
                with suppress(*FAULTS), Lines(fault, at):
                    run()
                now = self.look()
            except Exception as error:
                now = f"{error!r:.300}"
            if now not in (before, after):
                wrong.append(f"{fault.__name__} at line {at} of {lines.count}: {now[0] if len(now) == 2 else now}")
            else:
                found["before" if now == before else "after"] += 1
            if now != before:
                back()
        return {"operation": operation, "lines": lines.count, **found, "wrong": wrong}


OPERATIONS = ("drawing", "by_tag", "load_lora", "unload_lora", "set_scale", "learn_word", "save")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--operation", choices=OPERATIONS, help="one of them")
    parser.add_argument("--count", type=int, default=200, help="moments of each operation")
    parser.add_argument("--seed", type=int, default=0, help="another one takes other moments")
    options = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        interrupts = Interrupts(folder)
        for operation in [options.operation] if options.operation else OPERATIONS:
            found = interrupts.interrupt(operation, options.count, options.seed)
            wrong += len(found["wrong"])
            print(json.dumps(found), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
