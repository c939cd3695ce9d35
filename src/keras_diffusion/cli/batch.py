"""Draws the jobs of a file into a folder, and goes on where it was stopped."""

import csv
import io
import json
from pathlib import Path
from typing import NamedTuple

from keras_diffusion import __version__
from keras_diffusion.architectures import DTYPES
from keras_diffusion.cli.model import PRESETS, load
from keras_diffusion.errors import FlaggedImagesError, NumericalError
from keras_diffusion.system.paths import existing_file, is_full, new_file
from keras_diffusion.terminal import show

ERRORS = "errors.jsonl"
OURS = {"preset": str, "name": str}  # fields of a job that are no arguments of the model
TEXTS = {"prompt", "negative_prompt", "sampler", "spacing", "long_prompts", "image", "mask", "mask_white", *OURS}
FILES = ("image", "mask")
TAKEN = ("output", "verbose", "callback")  # arguments that the command itself gives
COMPARED = ("prompt", "negative_prompt", "num_steps", "unconditional_guidance_scale", "seed")
COMPARED += ("variation_seed", "variation_strength")
FAILURES = (ValueError, TypeError, OSError, MemoryError, NumericalError, FlaggedImagesError)  # of one job


class Job(NamedTuple):
    """A line of the file.

    Args:
        line: Its number, from 1.
        arguments: Those of the call, a dict, with a seed.
        preset: The model.
        paths: Where its images go.
    """

    line: int
    arguments: dict
    preset: str
    paths: list


def batch(options):
    """Draw the jobs of a file into a folder. Images that are there are not drawn again."""
    jobs, failed = read_jobs(options)
    total, waiting = len(jobs) + len(failed), {}
    for job in jobs:
        note(failed, [job.line], require_same_recipe, job)
        if job.line not in failed and not all(path.exists() for path in job.paths):
            waiting.setdefault(job.preset, []).append(job)
    write_errors(options, failed)
    drawn, count = 0, sum(map(len, waiting.values()))
    for preset, its_jobs in waiting.items():  # each model is loaded once
        lines = [job.line for job in its_jobs]
        model = note(failed, lines, load, None, None, "auto", options.dtype, preset)
        for job in its_jobs if model else ():
            drawn += 1
            show(f"job {drawn} of {count}, line {job.line}")
            model.lora_folder = options.lora_folder
            note(failed, [job.line], draw, model, job)
            if job.line in failed:
                write_errors(options, failed)
        if model:
            model.unload(discard=True)
    show("")
    write_errors(options, failed)
    if failed:
        raise ValueError(f"{len(failed)} of {total} jobs failed; {options.output / ERRORS} says why")


def note(failed, lines, function, *arguments):
    """Returns `function(*arguments)`, or None after it has noted in `failed` why the jobs of these lines failed."""
    try:
        return function(*arguments)
    except FAILURES as error:
        if isinstance(error, OSError) and is_full(error):
            raise
        failed.update(dict.fromkeys(lines, str(error) or type(error).__name__))
    return None


def draw(model, job):
    """Draws a job, and writes those of its images that are not there."""
    from keras_diffusion.images import job_settings

    method = "inpaint" if "mask" in job.arguments else "image_to_image" if "image" in job.arguments else "text_to_image"
    call = {"num_steps": model.defaults.num_steps, **job.arguments}
    images = getattr(model, method)(**call, verbose=0)
    about = {"Model": Path(job.preset).name}
    arguments = {name: value for name, value in call.items() if name not in FILES}
    for path, image, settings in zip(
        job.paths, images, job_settings.settings(arguments, model, images.shape, about, __version__), strict=True
    ):
        if not path.exists():
            with new_file(path) as temporary:
                temporary.write_bytes(job_settings.png(image, settings))
            print(path, flush=True)


def require_same_recipe(job):
    """Raises an error if images of a job are there that another job drew."""
    from keras_diffusion.images import job_settings
    from keras_diffusion.sampling.variation import seeds_alone

    for i, path in enumerate(job.paths):
        found, _ = job_settings.read(path.read_bytes()) if path.exists() else ({}, "")
        wanted = job.arguments | seeds_alone(job.arguments, i)
        for name in COMPARED:
            if name in found and name in wanted and found[name] != wanted[name]:
                raise ValueError(
                    f"{path} was drawn with another `{name}`; delete it, or give the job another `name`. "
                    f"Received: {name}={wanted[name]!r:.200}"
                )


def read_jobs(options):
    """Reads the file: a list of `Job`, and a dict from the numbers of the lines that are none to the reasons."""
    path = existing_file(options.jobs, "jobs")
    read_lines = {".jsonl": json_lines, ".csv": csv_lines}.get(path.suffix.lower())
    if not read_lines:
        raise ValueError(f"The jobs must be a .jsonl or a .csv file. Received: {str(path)!r:.200}")
    jobs, failed, taken = [], {}, {}
    for line, read in read_lines(path.read_text("utf-8-sig")):
        job = note(failed, [line], make_job, line, read, options)
        for each in job.paths if job else ():
            if (first := taken.setdefault(each, line)) != line:
                failed[line] = f"Line {first} draws {each} too; give one of them another `name` or `seed`."
        if job and line not in failed:
            jobs.append(job)
    if not jobs and not failed:
        raise ValueError(f"There is no job in the file. Received: {str(path)!r:.200}")
    return jobs, failed


def json_lines(text):
    """Yields the number of each line that is not empty, and a function that reads it."""
    for line, content in enumerate(text.split("\n"), start=1):
        if content.strip():
            yield line, lambda content=content: json.loads(content)


def csv_lines(text):
    """Yields the same for the rows of a table, whose first line names the arguments; empty cells are not given."""
    rows = csv.DictReader(io.StringIO(text))
    for row in rows:
        yield rows.line_num, lambda row=row: {name: cell(name, value) for name, value in row.items() if value}


def cell(name, value):
    """Reads a cell: text, or for other arguments what JSON has."""
    if name is None:
        raise ValueError(f"There are more cells than names in the first line. Received: {value!r:.200}")
    try:
        return value if name in TEXTS else json.loads(value.lower() if value in ("TRUE", "FALSE") else value)
    except ValueError as error:
        raise ValueError(f"`{name}` must be a number, true or false. Received: {value!r:.200}") from error


def make_job(line, read, options):
    """Makes the `Job` of a line."""
    try:
        arguments = read()
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"A line must be a JSON object: {error}") from error
    if not isinstance(arguments, dict):
        raise TypeError(f"A line must be a JSON object. Received: {type(arguments).__name__}")
    for name in TAKEN:
        if name in arguments:
            raise ValueError(
                f"A job has no `{name}`; the command writes PNGs. Received: {name}={arguments[name]!r:.200}"
            )
    for name in COMPARED:
        if isinstance(arguments.get(name), list):
            raise TypeError(f"A job takes one `{name}`. Received: {name}={arguments[name]!r:.200}")
    for name, kind in OURS.items():
        if not isinstance(arguments.get(name, ""), kind):
            raise TypeError(f"`{name}` must be a str. Received: {arguments[name]!r:.200}")
    name, preset = arguments.pop("name", f"{line:06}"), arguments.pop("preset", options.preset)
    if Path(name).name != name:
        raise ValueError(f"`name` must be the beginning of a file's name, and no path. Received: {name!r:.200}")
    arguments = {"seed": line} | arguments
    if arguments.get("variation_strength"):
        arguments = {"variation_seed": line} | arguments
    seed, count = arguments["seed"], arguments.get("batch_size", 1)
    variation_seed = arguments.get("variation_seed", 0)
    for key, value in (("seed", seed), ("batch_size", count), ("variation_seed", variation_seed)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"`{key}` must be a whole number of at least 0. Received: {value!r:.200}")
    for key in FILES:
        if key in arguments:
            arguments[key] = existing_file(options.jobs.parent / str(arguments[key]), key)
    return Job(line, arguments, preset, [options.output / f"{name}-{seed + i}.png" for i in range(count)])


def write_errors(options, failed):
    """Writes why jobs failed, a JSON object a line; no file if none did."""
    path = options.output / ERRORS
    if failed:
        lines = [json.dumps({"line": line, "error": error}) for line, error in sorted(failed.items())]
        with new_file(path, overwrite=True) as temporary:
            temporary.write_text("\n".join([*lines, ""]), "utf-8")
    else:
        path.unlink(missing_ok=True)


def add_arguments(command):
    add = command.add_argument
    add("jobs", type=Path, metavar="FILE", help=".jsonl or .csv: each line has the arguments of a call of the model")
    add("--output", type=Path, metavar="FOLDER", required=True, help="where the images go, and errors.jsonl")
    add("--preset", default="emoji", help=f"of jobs that name none: {PRESETS} (default: emoji)")
    add("--lora-folder", type=Path, metavar="FOLDER", help="where the LoRAs of <lora:name:0.8> are, with weighting")
    add("--dtype", choices=DTYPES, metavar="DTYPE", help=f"{', '.join(DTYPES)} (default: float32)")
