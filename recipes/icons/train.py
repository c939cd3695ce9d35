"""Trains the model "icons" in a number of minutes, on one GPU, and writes its weights.

    python recipes/icons/train.py --pack icons.pack --output FOLDER --minutes 8

Everything goes by the clock: scenes are made beside, the autoencoder has a third of the time, the text encoder and the
diffusion model the rest. FOLDER gets the weights, a log and sheets; `export.py` makes a model folder of it.
"""

import argparse
import math
import os
import signal
import sys
import time
import traceback
from pathlib import Path

START = time.monotonic()
# To compile sooner: nothing is timed on the GPU, which trains meanwhile, and all cores take part.
FLAGS = "--xla_gpu_enable_triton_gemm=false --xla_gpu_autotune_level=0 --xla_gpu_force_compilation_parallelism=16"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}"
os.environ["KERAS_BACKEND"] = "jax"
if os.environ.get("JAX_PLATFORMS"):
    os.environ["JAX_PLATFORMS"] += ",cpu"  # where networks are built

BEGIN = 0.16  # share of the time after which the training begins, even if few scenes are there
AUTOENCODER_ENDS = 0.38
AUTOENCODER_LEAST = 0.17
RESERVE = 11.0  # seconds at the end for the last files
SAVE_EVERY, LOG_EVERY = 90.0, 5.0
TAKE_EVERY = 3.0  # seconds between two blocks of new scenes while the diffusion model trains
RATES = {"autoencoder": 2e-3, "diffusion": 1.5e-3}
WARM_UP = 0.03


def learning_rate(peak, progress):
    """A warm-up, then a cosine to a fiftieth."""
    cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, progress))
    return peak * (0.02 + 0.98 * cosine) * min(1.0, (progress + 0.002) / WARM_UP)


def safely(log, function):
    """Calls a function that the training can do without, and logs its error."""
    try:
        function()
    except Exception:
        log(traceback.format_exc())


def wait_for_scenes(machine, log, deadline):
    """Takes scenes until there are enough to begin with and the trainings are compiled, which may time kernels."""
    trainings = [machine.compiled[part] for part in machine.parts if part in machine.compiled]
    while machine.count < machine.scale.enough or not all(training.done() for training in trainings):
        if machine.take():
            continue
        if machine.feed.failed() and not machine.count:
            raise RuntimeError("No scenes are made; the error is above.")
        if time.monotonic() > deadline and machine.count:
            break
        time.sleep(0.02)
    log(f"{machine.count} scenes to begin with")


def train(machine, part, data, peak, end, log, beside=lambda steps, average: None):
    """Trains a part until a time.

    Args:
        machine: The `Machine`.
        part: "autoencoder" or "diffusion".
        data: Function that returns the buffers to draw examples from.
        peak: The highest learning rate.
        end: When to stop, by `time.monotonic`.
        log: Function of a line.
        beside: Function of the number of steps and of one that returns the averaged weights, called after every call.

    Returns:
        The moving average of the weights.
    """
    import numpy as np

    machine.compiled[part].result()
    count = machine.scale.autoencoder_steps if part == "autoencoder" else machine.scale.steps
    state, steps, losses = machine.start(part), 0, []
    begin = now = logged = time.monotonic()
    longest, last_take = 0.0, 0.0
    while now + longest < end:
        rates = np.full(count, learning_rate(peak, (now - begin) / max(1.0, end - begin)), "float32")
        key = np.array([len(part), steps], "uint32")
        known = np.int32(min(machine.count, len(data()[0])))
        state, result = machine.call(part, state, data(), known, rates, key)
        if part == "autoencoder" or now - last_take > TAKE_EVERY:
            safely(log, machine.take)
            last_take = now
        losses.append(np.asarray(result))
        steps += count
        before, now = now, time.monotonic()
        longest = max(0.8 * longest, now - before)
        if now - logged > LOG_EVERY:
            mean, _, finite = np.mean(losses, 0)
            speed = len(losses) * count / (now - logged)
            scenes = f"{machine.count} scenes, rate {rates[0]:.5f}"
            log(f"{part} step {steps}, loss {mean:.4f}, {speed:.1f} steps/s, {scenes}")
            if finite < 1:
                log(f"{1 - finite:.1%} of the steps were left out: gradients were not finite")
            losses, logged = [], now
        beside(steps, lambda: machine.average(part, state))  # noqa: B023
    log(f"{part}: {steps} steps in {now - begin:.1f} s")
    return machine.average(part, state)


class Saver:
    """Writes the diffusion model's files every 90 s, and a sheet at each third of its time."""

    def __init__(self, machine, output, begin, end, log):
        self.machine, self.output, self.log = machine, output, log
        self.sheets = [begin + share * (end - begin) for share in (1 / 3, 2 / 3)]
        self.next = begin + min(30.0, (end - begin) / 4)

    def __call__(self, steps, average):
        now = time.monotonic()
        if now > self.next:
            self.save(steps, average())
            self.next = now + SAVE_EVERY
        if self.sheets and now > self.sheets[0] and self.machine.compiled["draw"].done():
            self.sheets.pop(0)
            safely(self.log, lambda: self.machine.draw(self.output / "sheet_before.png", average()))

    def save(self, steps, average):
        import model

        start = time.monotonic()
        model.write(self.output, "diffusion", average, {"steps": steps, **self.about()})
        self.log(f"saved after {steps} steps in {time.monotonic() - start:.1f} s")

    def about(self):
        return {"latent_channels": self.machine.architecture.autoencoder.latent_channels}


def run(arguments, log, feed):
    import jax
    import model
    from machine import Machine

    total = 60 * arguments.minutes
    deadline = START + total
    log(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {os.cpu_count()} cores")
    folder = arguments.weights
    found = {part: model.read(folder, part) for part in model.PARTS} if folder else {}
    chosen = arguments.scale, arguments.latent_channels, arguments.dtype, arguments.seed
    machine = Machine(*chosen, found, arguments.guidance, feed, log)
    log(f"built: {sum(w.size for w in machine.weights.values()) / 1e6:.2f} million weights")
    wait_for_scenes(machine, log, START + BEGIN * total)
    if not machine.encodes:
        machine.compiled["autoencoder"].result()
        end = max(START + AUTOENCODER_ENDS * total, time.monotonic() + AUTOENCODER_LEAST * total)
        weights = train(machine, "autoencoder", lambda: (machine.images,), RATES["autoencoder"], end, log)
        machine.finish_autoencoder(weights)
    safely(log, lambda: log(f"autoencoder: {machine.quality():.2f} dB"))
    about = {"latent_channels": arguments.latent_channels}
    model.write(arguments.output, "autoencoder", machine.own("autoencoder"), about)
    end = deadline - RESERVE * min(1.0, arguments.minutes / 4)
    machine.compiled["diffusion"].result()
    saver = Saver(machine, arguments.output, time.monotonic(), end, log)
    peak = arguments.rate * RATES["diffusion"]
    average = train(machine, "diffusion", lambda: (machine.latents, machine.tokens), peak, end, log, saver)
    saver.save("all", average)
    feed.stop()
    safely(log, lambda: machine.draw(arguments.output / "sheet.png", average))
    log("done")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pack", required=True, help='what pack.py wrote, or "stub" for random shapes')
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of all stages together, from the start on")
    parser.add_argument("--weights", type=Path, help="folder of earlier files to go on from")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="tiny rehearses on a processor")
    parser.add_argument("--latent-channels", type=int, default=4)
    parser.add_argument("--dtype", default="mixed_bfloat16", help="policy to compute in; float32 on a processor")
    parser.add_argument("--guidance", type=float, default=4.0, help="of the sheets")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1), help="that make scenes")
    parser.add_argument("--rate", type=float, default=1.0, help="of learning, times the usual one; less with --weights")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    from feed import Feed
    from model import SHAPES
    from report import Log

    arguments.output.mkdir(parents=True, exist_ok=True)
    log = Log(arguments.output, START)
    text = SHAPES[arguments.scale].text_encoder
    file = {"full": 256, "tiny": 16}[arguments.scale]
    feed = Feed(arguments.pack, file, arguments.workers, text.vocabulary, text.length)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    status = 1
    try:
        run(arguments, log, feed)
        status = 0
    except BaseException:
        log(traceback.format_exc())
    finally:
        feed.stop()
        os._exit(status)  # at once, whatever is still compiled beside


if __name__ == "__main__":
    main()
