"""Drawing many jobs: names, what is left out, what failed, and that a stop at any point loses and repeats nothing."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.cli import main as cli
from keras_diffusion.images import metadata
from keras_diffusion.sampling.defaults import Defaults


class FakeModel:
    """Draws an image of the brightness of its seed."""

    defaults, sampler, img_width, img_height = Defaults(25, 3.0), "dpmpp_2m", 24, 16
    architecture = SimpleNamespace(prediction_type="epsilon")

    def __init__(self, height, width, jit_compile, dtype, preset):
        self.log.append(f"load {preset}")
        if preset == "absent":
            raise ValueError("There is no such model.")

    def text_to_image(self, prompt, batch_size=1, seed=None, **options):
        self.log.append(prompt)
        if prompt == "stop":
            raise KeyboardInterrupt
        if prompt == "fail":
            raise ValueError("It cannot be drawn.")
        return np.stack([np.full((16, 24, 3), seed + i, "uint8") for i in range(batch_size)])

    def image_to_image(self, image, **call):
        self.log.append(image.name)
        return self.text_to_image(**call)

    def unload(self, discard):
        self.log.append("unload")


@pytest.fixture
def log(monkeypatch):
    """What the models were asked."""
    monkeypatch.setattr(FakeModel, "log", [], raising=False)
    monkeypatch.setitem(sys.modules, "keras_diffusion.stable_diffusion", SimpleNamespace(StableDiffusion=FakeModel))
    return FakeModel.log


@pytest.fixture
def run(tmp_path, log):
    def run(*jobs, file="jobs.jsonl"):
        path = tmp_path / file
        lines = [job if isinstance(job, str) else json.dumps(job) for job in jobs]
        path.write_text("\n".join(lines), "utf-8")
        log.clear()
        return cli.main(["batch", str(path), "--output", str(tmp_path / "out")])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def errors(folder):
    return {row["line"]: row["error"] for row in map(json.loads, (folder / "errors.jsonl").read_text().splitlines())}


def test_names_come_from_line_and_seed(run, out, capsys):
    assert run({"prompt": "a"}, "", {"prompt": "b", "seed": 7, "batch_size": 2}, {"prompt": "c", "name": "cat"}) == 0
    assert names(out) == ["000001-1.png", "000003-7.png", "000003-8.png", "cat-4.png"]
    assert capsys.readouterr().out.splitlines()[0] == str(out / "000001-1.png")
    with Image.open(out / "000003-8.png") as image:
        assert np.unique(image) == 8
    settings = metadata.read(out / "000003-8.png")
    assert (settings["Prompt"], settings["Seed"], settings["Steps"], settings["Model"]) == ("b", "8", "25", "emoji")


def test_goes_on_after_a_stop(run, out, log):
    jobs = [{"prompt": "a"}, {"prompt": "stop"}, {"prompt": "c", "batch_size": 2}]
    assert run(*jobs) == 130
    assert names(out) == ["000001-1.png"]
    first = out / "000001-1.png"
    before = first.stat().st_mtime_ns
    jobs[1] = {"prompt": "b"}
    assert run(*jobs) == 0
    assert log == ["load emoji", "b", "c", "unload"]
    (out / "000003-4.png").unlink()
    assert run(*jobs) == 0
    assert log == ["load emoji", "c", "unload"]
    assert run(*jobs) == 0
    assert log == []
    assert names(out) == ["000001-1.png", "000002-2.png", "000003-3.png", "000003-4.png"]
    assert first.stat().st_mtime_ns == before


def test_failures_are_listed_and_tried_again(run, out, log):
    wrong = ["{", "[" * 9999, '{"seed": -1}', '{"prompt": "a", "name": "../a"}', '{"prompt": "a", "image": "no.png"}']
    assert run(*wrong, {"prompt": "fail"}, {"prompt": "a"}, {"prompt": "b", "preset": "absent"}) == 1
    assert names(out) == ["000007-7.png", "errors.jsonl"]
    found = errors(out)
    assert sorted(found) == [1, 2, 3, 4, 5, 6, 8]
    for line, words in {
        1: "JSON object",
        3: "at least 0",
        4: "no path",
        5: "no.png",
        6: "cannot",
        8: "no such",
    }.items():
        assert words in found[line]
    assert run({"prompt": "a", "seed": 7, "name": "000007"}) == 0
    assert names(out) == ["000007-7.png"]


def test_what_the_command_gives_itself_is_no_argument_of_a_job(run, out):
    assert run({"prompt": "a", "output": "pil"}, {"prompt": "a", "verbose": 1}) == 1
    assert all(f"no `{name}`" in errors(out)[line] for line, name in ((1, "output"), (2, "verbose")))


def test_every_model_is_loaded_once(run, log):
    assert run(*[{"prompt": name, "preset": name} for name in ("x", "y", "x", "y")]) == 0
    assert log == ["load x", "x", "x", "unload", "load y", "y", "y", "unload"]


def test_an_image_of_another_job_is_not_taken_for_its_own(run, out):
    assert run({"prompt": "a"}) == 0
    assert run({"prompt": "b"}) == 1
    assert "another `prompt`" in errors(out)[1]
    assert run({"prompt": "a", "name": "x", "seed": 5}, {"prompt": "b", "name": "x", "seed": 4, "batch_size": 2}) == 1
    assert "Line 1 draws" in errors(out)[2]


def test_nor_is_one_of_several(run, out, log):
    assert run({"prompt": "a", "batch_size": 2}) == 0
    (out / "000001-1.png").unlink()
    assert run({"prompt": "b", "batch_size": 2}) == 1
    assert "another `prompt`" in errors(out)[1]
    assert log == []


def test_a_job_has_one_prompt(run, out):
    assert run({"prompt": ["a", "b"], "batch_size": 2}) == 1
    assert "one `prompt`" in errors(out)[1]


def test_tables_and_images(run, out, tmp_path, log):
    Image.new("RGB", (24, 16)).save(tmp_path / "start.png")
    table = ("prompt,seed,image,prompt_weighting,num_steps", '"a, b",3,,TRUE,', "c,4,start.png,,10", "d,x,,,")
    assert run(*table, file="jobs.csv") == 1
    assert log == ["load emoji", "a, b", "start.png", "c", "unload"]
    assert names(out) == ["000002-3.png", "000003-4.png", "errors.jsonl"]
    assert "`seed` must be a number" in errors(out)[4]
    assert metadata.read(out / "000003-4.png")["Steps"] == "10"


def test_refuses_what_are_no_jobs(run, capsys):
    assert run("a cat", file="jobs.txt") == 1
    assert ".jsonl or a .csv" in capsys.readouterr().err
    assert run("") == 1
    assert "no job" in capsys.readouterr().err


def test_a_full_disk_ends_it(run, monkeypatch):
    tried = []

    def full(model, job):
        tried.append(job.line)
        raise OSError(28, "the disk is full")

    monkeypatch.setattr("keras_diffusion.cli.batch.draw", full)
    assert run({"prompt": "a"}, {"prompt": "b"}) == 1
    assert tried == [1]
