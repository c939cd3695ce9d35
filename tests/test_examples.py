"""The examples run as they stand, on the bundled model, and each saves a picture that shows something."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.training.trainer import Trainer

EXAMPLES = Path(__file__).parents[1] / "examples"


def deviation(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).std()


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts(script, tmp_path, monkeypatch, one_bundled_model):
    monkeypatch.chdir(tmp_path)
    compile = Trainer.compile  # two steps are soonest taken without a graph
    monkeypatch.setattr(
        Trainer, "compile", lambda self, *given: compile(self, *given, run_eagerly=not compiles_always())
    )
    code = script.read_text(encoding="utf-8")
    exec(code.replace("steps=40", "steps=2"), {"__name__": "__main__"})

    (path,) = tmp_path.iterdir()
    assert path.stem == script.stem
    path = path / f"{path.name}.png" if path.is_dir() else path
    assert deviation(path) > 10
    lines = [line for line in code.splitlines() if line.strip()]
    assert len(lines) <= 25


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks(notebook, tmp_path, monkeypatch, one_bundled_model):
    """Runs the cells one after the other; what Jupyter would show, the last expression of each, must evaluate."""
    monkeypatch.chdir(tmp_path)
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    names = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), names)

    assert names
    assert any(cell["cell_type"] == "markdown" for cell in cells)
    for path in tmp_path.iterdir():
        assert deviation(path) > 10
