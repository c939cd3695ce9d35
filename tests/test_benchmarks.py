"""The benchmarks' scripts: they start, race, and report what they measured; how fast anything is they are not asked."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *arguments):
    process = subprocess.run(
        [sys.executable, BENCHMARKS / script, *map(str, arguments)], capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("run")


def test_every_contender_answers_some_question(scripts):
    for name in scripts.CONTENDERS:
        assert any(scripts.answers(name, question) for question in scripts.QUESTIONS)
    assert not scripts.answers("keras-cv", "cold")
    assert run("run.py", "--list").split() == list(scripts.CONTENDERS)


def test_every_script_finds_what_it_imports():
    scripts = sorted(path.stem for path in BENCHMARKS.glob("*.py"))
    assert "attention" in scripts
    process = subprocess.run(
        [sys.executable, "-c", f"import {', '.join(scripts)}"], cwd=BENCHMARKS, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr


def test_every_way_to_attend_is_timed():
    lines = run("attention.py", "--positions", 16, "--rounds", 1).splitlines()
    assert len(lines) == 7
    assert all(line.endswith("GFLOP/s") for line in lines)


def test_a_contender_draws_the_bundled_model():
    options = json.dumps({"size": 64, "batch": 1, "steps": 1, "dtype": "float32", "jit_compile": False})
    process = subprocess.run(
        [sys.executable, BENCHMARKS / "contender.py", "ours", "cold", options],
        input="go\n",
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    built, drawn = map(json.loads, process.stdout.splitlines())
    assert drawn["seconds"] > 0
    assert drawn["total_cpu"] > built["cpu"]


STAND_IN = """
import itertools, json, os, sys

for line in itertools.chain(["built"], sys.stdin):
    seconds = {"tensorflow": 2.0, "jax": 1.0}[os.environ["KERAS_BACKEND"]]
    print(json.dumps({"seconds": seconds, "cpu": 1.0, "total_cpu": seconds, "peak_mb": 9.0}), flush=True)
"""


def test_a_question_whose_turns_are_one_process_each_and_its_report(scripts, tmp_path, monkeypatch, capsys):
    measured, picture = tmp_path / "measured.jsonl", tmp_path / "measured.svg"
    (tmp_path / "contender.py").write_text(STAND_IN)
    monkeypatch.setattr(scripts, "HERE", tmp_path)
    monkeypatch.setattr(scripts, "wake_memory", lambda: None)
    contenders = "tensorflow", "jax"
    command = ["run.py", "cold", "--rounds", "2", "--contenders", *contenders, "--json", str(measured)]
    monkeypatch.setattr(sys, "argv", command)
    scripts.main()

    assert capsys.readouterr().out.splitlines()[-1].startswith("jax")
    (row,) = map(json.loads, measured.read_text().splitlines())
    assert (row["against"], row["contender"]) == contenders
    assert row["cpu_all"] == [[1.0, 1.0], [2.0, 2.0]]
    assert row["cpu_ratio"] == 0.5
    assert row["seconds"] > 0
    heading, _, line = run("report.py", measured, "--plot", picture).splitlines()[-3:]
    assert heading.count("|") == line.count("|")
    assert line.startswith("| cold, batch 1, 20 steps, float32 | jax | tensorflow |")
    texts = [element.text for element in ElementTree.parse(picture).iter() if element.tag.endswith("text")]
    assert "cold: jax against tensorflow" in texts


def test_the_middle_of_the_turns_counts(scripts):
    turns = [({"seconds": 2.0}, {"seconds": value}) for value in (9.0, 1.0, 3.0)]
    assert scripts.compared("seconds", turns) == {
        "seconds": 3.0,
        "seconds_against": 2.0,
        "seconds_ratio": 1.5,
        "seconds_all": [[9.0, 1.0, 3.0], [2.0, 2.0, 2.0]],
    }


def test_the_table_of_a_gpu(tmp_path):
    measured = tmp_path / "gpu.jsonl"
    machine = {"machine": "a card", "packages": {}, "size": 512, "steps": 50, "dtype": "float16"}
    seconds = {"diffusers": 2.0, "diffusers-compiled": 0.5, "jax": 0.4, "torch": None}
    rows = [
        {**machine, "stage": "latents", "batch": 1, "contender": name, "first_seconds": 9.0}
        | ({"seconds": value, "seconds_all": [value]} if value else {"error": "no answer within 60 s"})
        for name, value in seconds.items()
    ]
    measured.write_text("\n".join(map(json.dumps, rows)))
    lines = run("report.py", measured).splitlines()
    assert lines[-1] == "| latents | 1 | jax | 0.400 | 125.0 | 0.20 | 0.80 | 9.0 |  |"
    assert not any("torch" in line for line in lines)


def test_time_that_two_kernels_share_counts_once(scripts):
    summary = importlib.import_module("peers.profiles").summary
    seen = summary([("a", 0, 1000), ("b", 500, 1000), ("a", 3000, 250)])
    assert (seen["busy_ms"], seen["kernels"]) == (1.75, 3)
    assert seen["longest"] == [["a", 2, 1.25], ["b", 1, 1.0]]


def test_a_worker_that_fails_is_named_and_the_others_go_on(scripts, monkeypatch):
    gpu = importlib.import_module("gpu")
    monkeypatch.setitem(gpu.CONTENDERS, "missing", ("no_such_peer", False, {}, "numpy"))
    worker, rows = gpu.Worker("missing", {"size": 64, "steps": 1, "dtype": "float32"}), []
    assert worker.answer(60) == {"error": "exit status 1"}
    gpu.race([worker], "latents", 1, 1, rows.append)
    assert rows == [
        {"stage": "latents", "batch": 1, "contender": "missing", "error": "exit status 1", "first_seconds": None}
    ]
