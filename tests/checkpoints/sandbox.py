"""Reads files that others send the names of, in little memory, and says what happened: `sandbox` in conftest.py."""

import encodings.cp437  # noqa: F401  the first zip file would import it
import json
import os
import resource
import sys
import time
from pathlib import Path

from keras_diffusion.checkpoints.formats import gguf_file, hdf5_file, pickle_file, safetensors

READERS = {
    "pickles": pickle_file.index,
    "safetensors": safetensors.index,
    "datasets": hdf5_file.index,
    "gguf": gguf_file.index,
}
MEMORY = 64 << 20  # bytes that reading a file may take
SECONDS = 10  # of processor time, after which the system ends this process

events, watching = [], False


def watch(event, arguments):
    if watching and event != "builtins.id":
        events.append([event, *map(str, arguments[:1])])


def limit(kind, value):
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def read(reader, path):
    """What became of reading a file: the names of its tensors, or the error; and what Python did meanwhile."""
    global watching
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit(resource.RLIMIT_CPU, int(time.process_time()) + SECONDS)
    limit(resource.RLIMIT_AS, used + MEMORY)
    events.clear()
    watching = True
    try:
        names, error = list(READERS[reader](Path(path))), None
    except BaseException as caught:
        names, error = None, caught
    watching = False
    limit(resource.RLIMIT_AS, resource.RLIM_INFINITY)
    cause = error and error.__cause__ and type(error.__cause__).__name__
    kind = error and type(error).__name__
    return {"names": names, "error": kind, "message": str(error), "cause": cause, "events": events}


if __name__ == "__main__":
    sys.addaudithook(watch)
    for line in sys.stdin:
        os.write(1, json.dumps(read(*json.loads(line))).encode() + b"\n")
