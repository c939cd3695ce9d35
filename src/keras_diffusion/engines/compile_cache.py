"""Chooses the folder in which compilers keep their results for the next process."""

import hashlib
import os
import platform
import shutil
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import keras

SETTING = "KERAS_DIFFUSION_COMPILE_CACHE"
ROOM = 2**30  # bytes that must be free: some compilers fail where they cannot write
# TensorFlow cannot do without its folder once it has it, and names what it keeps by a number that depends on all that
# was traced before; torch keeps what it compiles anyway. OpenVINO would write all weights, once for each size.
CACHED_BY_DEFAULT = ("jax",)


def use_compile_cache():
    """Makes the backend store what it compiles for the next process, unless it has a folder already."""
    backend = keras.backend.backend()
    if (backend in CACHED_BY_DEFAULT or chosen()) and (path := folder(backend)):
        import_module(f"{__package__}.{backend}").use_compile_cache(path)


def chosen():
    """The folder that KERAS_DIFFUSION_COMPILE_CACHE names, or ""."""
    return os.environ.get(SETTING, "").strip()


def folder(package):
    """The folder of a compiler, for this version of it and this processor.

    Args:
        package: The name of its package.

    Returns:
        A `Path`, or None where KERAS_DIFFUSION_COMPILE_CACHE is "0" or the folder it names, or else the user's cache
        folder, cannot be written or is nearly full.
    """
    if chosen() == "0":
        return None
    usual = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "keras-diffusion" / "compiled"
    path = Path(chosen() or usual).expanduser() / f"{package}-{_key(package)}"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)  # what lies there is run
        return path if os.access(path, os.W_OK) and shutil.disk_usage(path).free >= ROOM else None
    except (OSError, RuntimeError):  # no home
        return None


def _key(package):
    names = (package, f"{package}lib", "keras")
    return hashlib.sha256("\n".join([*map(_version, names), _processor()]).encode()).hexdigest()[:16]


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _processor():
    """Describes the processor and its instruction sets."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    kept = {line for line in lines if line.startswith(("model name", "flags", "Features"))}
    return "\n".join([platform.machine(), platform.processor(), *sorted(kept)])
