"""Makes scenes in processes beside the training and hands them over in blocks, through files.

The training starts this script, which starts its workers; none of them imports JAX. A folder holds the pack's images,
which all workers share, and the scenes of each worker, in files that the training takes away as it reads them.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np

from keras_diffusion.prompts.tokenizer import SimpleTokenizer

MOST_FILES = 6  # of a worker that wait to be read
MOST_FAILURES = 50  # of a worker's scenes, after which it stops


class Feed:
    """Scenes and their tokens, as they are made.

    Args:
        pack: Path of the pack, or "stub" for random shapes.
        size: Number of scenes in a file.
        workers: Number of processes.
        vocabulary: Number of the tokenizer's tokens.
        length: Number of tokens of a caption.
    """

    def __init__(self, pack, size, workers, vocabulary, length):
        memory = Path("/dev/shm")
        enough = memory.is_dir() and shutil.disk_usage(memory).free > 8 * 2**30
        self.folder = Path(tempfile.mkdtemp(prefix="icons", dir=memory if enough else None))
        numbers = map(str, (size, workers, vocabulary, length))
        command = [sys.executable, __file__, str(pack), str(self.folder), *numbers]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(command, env=environment, start_new_session=True)
        self.left = [], []

    def take(self, count):
        """Returns (uint8 (count, h, w, 3), int32 (count, length)), or None as long as there are not so many scenes."""
        images, tokens = self.left
        if len(images) * (len(images[0]) if images else 1) < count:
            for path in sorted(self.folder.glob("scenes_*.npz"), key=lambda path: path.stat().st_mtime):
                with np.load(path) as file:
                    images.append(file["images"])
                    tokens.append(file["tokens"])
                path.unlink()
                if len(images) * len(images[0]) >= count:
                    break
        if not images or len(images) * len(images[0]) < count:
            return None
        self.left = [], []
        return np.concatenate(images)[:count], np.concatenate(tokens)[:count]

    def failed(self):
        """Tells whether no more scenes will come."""
        return self.process.poll() is not None

    def stop(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def prepare(pack, folder, workers):
    """Draws the pack's images and saves what workers need."""
    from pack import load
    from stock import describe

    start = time.monotonic()
    pictures = load(pack, workers=workers)
    np.save(folder / "rgba.npy", pictures.rgba)
    (folder / "pictures.json").write_text(json.dumps(describe(pictures)))
    print(f"pack: {len(pictures.rgba)} images drawn in {time.monotonic() - start:.1f} s", flush=True)


def maker(pack, folder):
    """Returns a function of a generator that makes a scene."""
    if str(pack) == "stub":
        return stub
    from scenes import scene
    from stock import Stock

    images = np.load(folder / "rgba.npy", mmap_mode="r")
    stock = Stock(images, json.loads((folder / "pictures.json").read_text()))
    return lambda generator: scene(generator, stock)


def stub(generator):
    """Returns a scene to rehearse with: a disc or a square of one of four colours, at one of two places."""
    colours = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 80, 220), "yellow": (240, 210, 40)}
    colour, shape, place = generator.integers(4), generator.integers(2), generator.integers(2)
    rows, columns = np.mgrid[:128, :128] - 64
    columns = columns - (64 * place - 32)
    inside = (rows**2 + columns**2 < 600) if shape else (abs(rows) < 22) & (abs(columns) < 22)
    name = list(colours)[colour]
    image = np.where(inside[..., None], colours[name], 255).astype("uint8")
    return image, f"a {name} {('square', 'disc')[shape]} on the {('left', 'right')[place]}"


def work(pack, folder, number, size, vocabulary, length):
    """Makes scenes, file by file, until the process that started it is gone."""
    parent, make, tokenizer = os.getppid(), maker(pack, folder), SimpleTokenizer(vocabulary)
    failures, part = 0, 0
    while os.getppid() == parent:
        if len(list(folder.glob(f"scenes_{number}_*.npz"))) >= MOST_FILES:
            time.sleep(0.02)
            continue
        generator, images, captions = np.random.default_rng([number, part]), [], []
        while len(images) < size:
            try:
                image, caption = make(generator)
            except Exception:
                failures += 1
                if failures < 3:
                    traceback.print_exc()
                if failures > MOST_FAILURES:
                    raise
                continue
            images.append(image)
            captions.append(caption)
        tokens = np.array([fixed(tokenizer.encode(caption), length) for caption in captions], "int32")
        path = folder / f"scenes_{number}_{part}.npz"
        with open(f"{path}.part", "wb") as file:
            np.savez(file, images=np.stack(images), tokens=tokens)
        os.replace(f"{path}.part", path)
        part += 1


def fixed(tokens, length):
    """Returns tokens cut or filled up to a length, the end of text last."""
    return tokens[: length - 1] + [tokens[-1]] * max(1, length - len(tokens))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack")
    parser.add_argument("folder", type=Path)
    for name in ("size", "workers", "vocabulary", "length"):
        parser.add_argument(name, type=int)
    parser.add_argument("--number", type=int, help="of the worker; without it, starts all of them")
    arguments = parser.parse_args()
    size, vocabulary, length = arguments.size, arguments.vocabulary, arguments.length
    if arguments.number is not None:
        work(arguments.pack, arguments.folder, arguments.number, size, vocabulary, length)
        return
    if arguments.pack != "stub":
        prepare(arguments.pack, arguments.folder, arguments.workers)
    command = [sys.executable, *sys.argv]
    os.nice(5)
    workers = [subprocess.Popen([*command, "--number", str(i)]) for i in range(arguments.workers)]
    failed = [worker.returncode for worker in workers if worker.wait()]
    sys.exit(f"{len(failed)} workers failed" if failed else 0)


if __name__ == "__main__":
    main()
