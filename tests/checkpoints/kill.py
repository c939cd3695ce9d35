"""Kills each saver at random moments: what is there afterwards is the old file or the new one, and the rest is swept.

    python -m tests.checkpoints.kill                              # 200 moments of each saver, some minutes
    python -m tests.checkpoints.kill --saver folder --count 20 --seed 7

A child saves into a folder until a SIGKILL ends it. A line of JSON says how often it died before it was done; the exit
code is not 0 if a file was half there, or something was left after the next save, a day later.
"""

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from keras_diffusion.networks.classes import make
from keras_diffusion.serving.store import DONE, UNFINISHED, Store
from keras_diffusion.system.paths import ABANDONED, TEMPORARY

from ..small import SMALL
from .savers import SAVERS, Saver, left

OLD = b"what was there"


def _jobs(path):
    """Adds a job to the server's store, and ends it."""
    store = Store(path, keep=9)
    job = store.add("text_to_image", "emoji", {"prompt": "a cat"}, {"image.0": b"an image" * 1000})
    store.take()
    store.write(job.id, "0.png", b"an image" * 1000)
    store.finish(job.id, DONE, images=1)
    store.close()


def _sound(path):
    """Tells whether jobs that are done have their images, and the others what they start from."""
    store = Store(path, keep=9)
    jobs = store.newest(9)
    store.close()
    needed = [(job.id, "image.0" if job.state in UNFINISHED else "0.png") for job in jobs]
    return all((path / "files" / id / name).is_file() for id, name in needed)


def kill(name, count, seed, networks):
    """Returns what happened, and under "wrong" a list of what must not."""
    saver = Saver("jobs", lambda path, *_: _jobs(path)) if name == "jobs" else SAVERS[name]
    dice, died, wrong = random.Random(f"{name} {seed}"), 0, []
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        saver.save(Path(folder) / saver.name, SMALL, networks)
        longest, new = 1.5 * (time.perf_counter() - begun), left(Path(folder))
    for moment in range(count):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / saver.name
            if saver.old:
                path.write_bytes(OLD)
            before = left(Path(folder))
            died += _killed(lambda path=path: saver.save(path, SMALL, networks), longest * dice.random())
            found = left(Path(folder))
            if name == "jobs":
                sound = _sound(path) if path.exists() else True
            else:
                final = {place: content for place, content in found.items() if not _is_temporary(place)}
                sound = final in (before, new)
                _make_old(Path(folder), final)
                if final == before or saver.old:
                    saver.save(path, SMALL, networks)
                    sound &= left(Path(folder)) == new
            if not sound:
                wrong.append(f"moment {moment}: {sorted(found)}")
    return {"saver": name, "kills": count, "died": died, "wrong": wrong}


def _is_temporary(place):
    return bool(TEMPORARY.fullmatch(Path(place).parts[0]))


def _make_old(folder, final):
    """Lets what was left look as if it were from the day before."""
    for each in folder.iterdir():
        if each.name not in final:
            os.utime(each, (0, time.time() - ABANDONED - 60))


def _killed(save, seconds):
    """Has a child save, kills it after some seconds, and tells whether that ended it."""
    ready, begin = os.pipe()
    if not (child := os.fork()):
        os.write(begin, b"x")
        save()
        os._exit(0)
    os.read(ready, 1)
    for end in (ready, begin):
        os.close(end)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saver", choices=[*SAVERS, "jobs"], help="one of them")
    parser.add_argument("--count", type=int, default=200, help="kills of each saver")
    parser.add_argument("--seed", type=int, default=0, help="another one kills at other moments")
    options = parser.parse_args()
    networks = {name: make(name, architecture=SMALL, initialize=False) for name in SMALL.networks}
    for network in networks.values():
        for variable in network.variables:
            variable.assign(np.ones(tuple(variable.shape), "float32"))
    wrong = 0
    for name in [options.saver] if options.saver else [*SAVERS, "jobs"]:
        found = kill(name, options.count, options.seed, networks)
        wrong += len(found["wrong"])
        print(json.dumps(found), flush=True)
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
