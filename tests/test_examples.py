"""The examples run as they stand, on the bundled model, and each saves a picture that shows something."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def deviation(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).std()


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_scripts(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(script))

    (path,) = tmp_path.iterdir()
    assert path.stem == script.stem
    path = path / f"{path.name}.png" if path.is_dir() else path
    assert deviation(path) > 10
    lines = [line for line in script.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 25


@pytest.mark.parametrize("notebook", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks(notebook, tmp_path, monkeypatch):
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
