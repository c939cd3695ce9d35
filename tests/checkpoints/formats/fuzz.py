"""Reads damaged files of every format: the answer is tensors or an error of our own, within a second, and nothing else.

    python tests/checkpoints/formats/fuzz.py                          # 10,000 files of each format, some minutes
    python tests/checkpoints/formats/fuzz.py --format zip --count 300 --seed 7

Files are small sound ones with a few changes, drawn from the seed. Each format is read in a process of its own, with
2 GiB of memory to address, where opening a socket, starting a process or writing a file is noticed. A line of JSON says
how it went; if anything was not as it should be, the exit code is not 0 and the file that did it is kept.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from pathlib import Path

import h5py
import numpy as np

from keras_diffusion.checkpoints.formats import hdf5_file, pickle_file, safetensors
from keras_diffusion.checkpoints.formats.tensors import READABLE, read
from keras_diffusion.errors import CheckpointError

GOLDEN = Path(__file__).parents[2] / "golden"
ADDRESSES = 2 << 30  # bytes
GROWTH = 64_000  # kB of memory that reading may take beyond what the imports took
SECONDS = 1  # of processor time
FORBIDDEN = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.remove", "os.rename")
EXTREMES = [0, 1, 0x7F, 0x80, 0xFF, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


def hdf5_seed():
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name in ("layers/a/vars/0", "layers/a/vars/1", "layers/b/vars/0"):
            file[name] = np.arange(4.0, dtype="float32")
        file["dense/dense/kernel:0"] = np.ones((2, 3), "float16")
        file.attrs["layer_names"] = [b"dense"]  # a string of any length, in a collection
        file["dense"].attrs["weight_names"] = np.array([b"dense/kernel:0"])  # of this length, in place
    return content.getvalue()


def safetensors_seed():
    with tempfile.NamedTemporaryFile() as file:
        shapes = {"a": (2, 3), "b.c": (), "d": (4,)}
        safetensors.write(file.name, "float16", shapes, map(np.ones, shapes.values()), {"about": "a seed"})
        return Path(file.name).read_bytes()


def within_zip(data):
    """A sound zip file, of which only the pickle is damaged."""
    content = io.BytesIO()
    with zipfile.ZipFile(GOLDEN / "pickles_zip.ckpt") as whole, zipfile.ZipFile(content, "w") as archive:
        for member in whole.infolist():
            archive.writestr(member, data if member.filename.endswith("/data.pkl") else whole.read(member))
    return content.getvalue()


def pickle_seed():
    with zipfile.ZipFile(GOLDEN / "pickles_zip.ckpt") as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))


FORMATS = {  # format → (a sound file, reader, what makes a file of changed bytes)
    "zip": (lambda: (GOLDEN / "pickles_zip.ckpt").read_bytes(), pickle_file.index, bytes),
    "pickle": (pickle_seed, pickle_file.index, within_zip),
    "legacy": (lambda: (GOLDEN / "pickles_legacy.ckpt").read_bytes(), pickle_file.index, bytes),
    "safetensors": (safetensors_seed, safetensors.index, bytes),
    "hdf5": (hdf5_seed, hdf5_file.index, bytes),
}


def changed(whole, random):
    """A copy with one to four changes."""
    data = bytearray(whole)
    for _ in range(random.integers(1, 5)):
        place, other, size = (int(random.integers(len(data) + 1)) for _ in range(3))
        size = size % 64
        match random.integers(7):
            case 0:
                data[place : place + 1] = bytes([random.integers(256)])
            case 1:
                data[place : place + 1] = bytes([data[place % len(data)] ^ 1 << random.integers(8)]) if data else b""
            case 2:
                del data[place : place + size]
            case 3:
                data[place:place] = data[other : other + size]
            case 4:
                data[place : place + size] = data[other : other + size]
            case 5:
                width = int(random.choice([1, 2, 4, 8]))
                extreme = EXTREMES[random.integers(len(EXTREMES))] % 256**width
                data[place : place + width] = extreme.to_bytes(width, str(random.choice(["little", "big"])))
            case 6 if random.random() < 0.2:
                del data[place:]
        if not data:
            break
    return bytes(data)


def fuzz(name, count, seed, path):
    """Reads the files of a format and returns what happened; the last one is left at `path`."""
    sound, index, pack = FORMATS[name]
    whole, random, outcomes, slowest = sound(), np.random.default_rng(seed), Counter(), 0.0
    path.write_bytes(pack(whole))
    assert index(path)
    noticed = []

    def watch(event, arguments):
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        if watching and (writes or event.startswith(FORBIDDEN)):
            noticed.append(f"{event} {arguments!r:.200}")

    watching = False
    sys.addaudithook(watch)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    resource.setrlimit(resource.RLIMIT_CPU, (limit := 60 + count // 50, limit))  # what hangs in C, the system ends
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        path.write_bytes(pack(changed(whole, random)))
        watching, start = True, time.process_time()
        try:
            for tensor in index(path).values():
                if tensor.dtype in READABLE:
                    assert read(tensor).shape == tensor.shape
            outcome = "read"
        except CheckpointError as error:
            outcome = type(error).__name__
        watching, seconds = False, time.process_time() - start
        outcomes[outcome] += 1
        slowest = max(slowest, seconds)
        growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
        if noticed or seconds > SECONDS or growth > GROWTH:
            raise SystemExit(f"{noticed} after {seconds:.2f} s and {growth} kB of {path}")
    return {"format": name, "files": count, **outcomes, "slowest_ms": round(1e3 * slowest, 1), "memory_kb": growth}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--format", choices=FORMATS, help="one of them, in this process")
    parser.add_argument("--count", type=int, default=10_000, help="files of each format")
    parser.add_argument("--seed", type=int, default=0, help="another one changes the files in other ways")
    options = parser.parse_args()
    if options.format:
        path = Path(tempfile.gettempdir()) / f"fuzz-{options.format}-{os.getpid()}"
        print(json.dumps(fuzz(options.format, options.count, options.seed, path)), flush=True)
        return path.unlink()
    command = [sys.executable, __file__, "--count", str(options.count), "--seed", str(options.seed), "--format"]
    return max(abs(subprocess.run([*command, name]).returncode) for name in FORMATS)


if __name__ == "__main__":
    sys.exit(main())
