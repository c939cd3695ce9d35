"""Checks every path that people give: what is read must be a file, and what is written is never half there."""

import errno
import os
import re
import secrets
import shutil
import stat
import time
from contextlib import contextmanager, suppress
from pathlib import Path

KINDS = {stat.S_ISDIR: "a folder", stat.S_ISFIFO: "a pipe", stat.S_ISSOCK: "a socket"}
FULL = {errno.ENOSPC, errno.EDQUOT}
ROOM = 2**20  # bytes; a disk with less is taken to be full
ABANDONED = 24 * 3600  # seconds after which a temporary file is nobody's
TEMPORARY = re.compile(r"\..*\.[0-9a-f]{16}\.part", re.DOTALL)


def existing_file(path, name="path"):
    """Returns the path of a file that can be read to its end.

    Args:
        path: What was given.
        name: What to call it in errors.

    Returns:
        A `Path`.

    Raises:
        TypeError: If it is no path.
        FileNotFoundError: If there is nothing, or anything but a file: a pipe or a device may never end.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`{name}` must be a path. Received: {name}={path!r:.200}")
    if os.path.isfile(path):  # False also under a name that no file can have
        return Path(path)
    problem = "There is no such file"
    if os.path.exists(path):
        mode = os.stat(path).st_mode
        problem = f"This is {next((kind for test, kind in KINDS.items() if test(mode)), 'a device')} and no file"
    raise FileNotFoundError(f"{problem}. Received: {name}={str(path)!r:.200}")


def require_vacant(path, folder=False):
    """Returns the absolute form of a path if there is nothing, or, for a folder, an empty one.

    Raises:
        FileExistsError: If there is something.
        ValueError: If there can be nothing, as under too long a name or behind links that go round in a circle.
    """
    path = absolute(path)
    if path.exists() and not (folder and path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"There is something already; give another name. Received: path={str(path)!r:.200}")
    return path


def absolute(path, name="path"):
    """Returns the path that a path leads to, whether or not there is anything.

    Raises:
        TypeError: If it is no path.
        ValueError: If it leads nowhere.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"`{name}` must be a path. Received: {name}={path!r:.200}")
    try:
        found = Path(path).resolve()
        with suppress(FileNotFoundError, NotADirectoryError):
            found.stat()
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a circle, until Python 3.12
        reason = getattr(error, "strerror", None) or f"{error!s:.99}"
        message = f"`{name}` cannot be written: {reason}. Give another one. Received: {name}={str(path)!r:.200}"
        raise ValueError(message) from error
    return found


@contextmanager
def new_file(path, overwrite=False):
    """Gives a file to write, which becomes `path` when all has gone well and else disappears.

    Raises:
        FileExistsError: If there is something at `path` already, unless `overwrite`.
        OSError: If it cannot be written; the message says why.
        ValueError: If `path` leads nowhere.
    """
    path = absolute(path) if overwrite else require_vacant(path)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path) as temporary:
            yield temporary
            _to_disk(temporary)
            os.replace(temporary, path)


@contextmanager
def temporary_file(path):
    """Gives an empty file beside `path`, gone afterwards."""
    sweep(path.parent)
    temporary = beside(path)
    try:
        temporary.touch(exist_ok=False)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path):
    """Gives a folder to write in, which becomes `path` when all has gone well and else disappears.

    Raises:
        FileExistsError: If there is something at `path` already.
        OSError: If it cannot be written; the message says why.
        ValueError: If `path` leads nowhere.
    """
    path = require_vacant(path, folder=True)
    with _explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        temporary = beside(path)
        try:
            temporary.mkdir()
            yield temporary
            for file in filter(Path.is_file, temporary.rglob("*")):
                _to_disk(file)
            if os.name == "nt" and path.exists():
                path.rmdir()  # elsewhere, a folder takes the place of an empty one
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def sweep(folder):
    """Removes the temporary files and folders that processes which were killed have left."""
    with suppress(OSError):
        for left in filter(lambda entry: TEMPORARY.fullmatch(entry.name), list(os.scandir(folder))):
            with suppress(OSError):
                if time.time() - left.stat(follow_symlinks=False).st_mtime > ABANDONED:
                    shutil.rmtree(left) if left.is_dir(follow_symlinks=False) else os.unlink(left)


def is_full(error):
    """Returns whether an `OSError` says that a disk is full."""
    return error.errno in FULL


def beside(path):
    """Returns the path of a temporary file beside one, of a name that nothing else has."""
    return path.with_name(f".{path.name[:200]}.{secrets.token_hex(8)}.part")


def _to_disk(path):
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _explained(path):
    """Turns what the file system says into what to do."""
    try:
        yield
    except OSError as error:
        full = is_full(error) or (error.errno is None and shutil.disk_usage(path.anchor).free < ROOM)
        code = errno.ENOSPC if full else error.errno or errno.EIO
        reason = "the disk is full; make room" if full else f"{error.strerror or str(error):.99}; give another path"
        message = f"It cannot be written, nothing was left behind: {reason}. Received: path={str(path)!r:.200}"
        raise OSError(code, message) from error
