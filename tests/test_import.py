"""What importing the package adds to importing Keras: no sound, no socket, no thread, no weight."""

import ast
import inspect
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import keras_diffusion
from keras_diffusion import StableDiffusion
from keras_diffusion.engines.names import BACKENDS

MARK = "-- the package is imported below --"
PROBE = f"""
import glob, importlib, json, pkgutil, sys
import keras

EXTRA = ("engines.jax", "engines.openvino", "engines.openvino_layers", "engines.torch")
EXTRA += ("exporting.onnx", "exporting.onnx_graph", "exporting.openvino")

def threads():
    return len(glob.glob("/proc/self/task/*"))

events, modules, before = [], set(sys.modules), threads()
for stream in (sys.stdout, sys.stderr):
    print({MARK!r}, file=stream, flush=True)
sys.addaudithook(lambda event, arguments: events.append(event))

import keras_diffusion
for module in pkgutil.walk_packages(keras_diffusion.__path__, "keras_diffusion."):
    if not module.name.endswith(EXTRA) and ".serving." not in module.name:  # need an extra
        importlib.import_module(module.name)

report = dict(
    modules=sorted(set(sys.modules) - modules),
    sockets=[event for event in events if event.startswith("socket.")],
    threads=[before, threads()],
)
with open(sys.argv[1], "w") as file:
    json.dump(report, file)
"""
# Small third-party packages that importing Keras alone does not load.
LIGHT = {"PIL", "ftfy", "regex", "safetensors", "wcwidth"}


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """What a child process saw as it imported every module, and its output meanwhile."""
    report = tmp_path_factory.mktemp("import") / "report.json"
    child = subprocess.run(
        [sys.executable, "-c", PROBE, report],
        env={**os.environ, "KERAS_BACKEND": "tensorflow"},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    output = [stream.partition(f"{MARK}\n")[2] for stream in (child.stdout, child.stderr)]
    return {**json.loads(report.read_text()), "output": "".join(output)}


def test_import_prints_nothing(imported):
    assert imported["output"] == ""


def test_import_opens_no_socket(imported):
    assert imported["sockets"] == []


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_import_starts_no_thread(imported):
    """Nor opens a device: TensorFlow starts a pool of threads with it."""
    before, after = imported["threads"]
    assert after == before


def test_import_loads_nothing_heavier_than_keras(imported):
    packages = {name.partition(".")[0] for name in imported["modules"]}
    assert packages - sys.stdlib_module_names <= LIGHT | {"keras_diffusion"}


def test_a_bare_import_loads_little():
    """Without the site's packages, whose start-up files import modules too."""
    source = Path(keras_diffusion.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); import keras_diffusion; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-E", "-S", "-c", code], capture_output=True, text=True, check=True)
    assert not {"re", "typing"} & set(run.stdout.split())


def test_version_is_the_projects():
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert keras_diffusion.__version__ == pyproject["project"]["version"]


def test_type_checkers_see_every_public_name():
    """The imports for type checkers, which they re-export under the same name, are those of the lazy table."""
    tree = ast.parse(Path(keras_diffusion.__file__).read_text(encoding="utf-8"))
    checked = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    seen = {(node.module, alias.name, alias.asname) for node in checked.body for alias in node.names}
    homes = keras_diffusion._HOMES.items()
    assert seen == {(f"keras_diffusion.{home}", name, name) for home, names in homes for name in names}
    assert Path(keras_diffusion.__file__).with_name("py.typed").is_file()


PUBLIC = [
    (StableDiffusion, name)
    for name in dir(StableDiffusion)
    if not name.startswith("_") and inspect.isroutine(getattr(StableDiffusion, name))
]
PUBLIC += [(keras_diffusion, name) for name in ("contact_sheet", "pad", "replace_operations")]


@pytest.mark.parametrize(("owner", "name"), PUBLIC)
def test_public_functions_have_type_hints(owner, name):
    signature = inspect.signature(getattr(owner, name))
    assert signature.return_annotation is not inspect.Signature.empty
    untyped = [x.name for x in signature.parameters.values() if x.annotation is x.empty and x.name != "self"]
    assert not untyped


def test_every_public_name_is_there():
    assert all(getattr(keras_diffusion, name) is not None for name in keras_diffusion.__all__)
    assert {"SAMPLERS", "pad", "replace_operations"} <= set(keras_diffusion.__all__)


WITHOUT_BACKEND = """
import importlib, sys

class WithoutTensorFlow:
    def find_spec(self, name, path=None, target=None):
        if name == "tensorflow":
            raise ModuleNotFoundError(name=name)

sys.meta_path.insert(0, WithoutTensorFlow())
for module in ("keras_diffusion", "keras_diffusion.models", "keras_diffusion.training"):
    try:
        getattr(importlib.import_module(module), "StableDiffusion")
    except ImportError as error:
        print(error)
    for name in [name for name in sys.modules if name.startswith("keras")]:
        del sys.modules[name]
"""


def test_no_backend_is_a_dependency_and_a_missing_one_is_named():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    needed = {re.match("[a-z0-9]+", line)[0] for line in project["dependencies"]}
    assert not needed & set(BACKENDS)
    assert set(BACKENDS) <= set(project["optional-dependencies"])
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow"}
    child = subprocess.run(
        [sys.executable, "-c", WITHOUT_BACKEND], env=environment, capture_output=True, text=True, check=True
    )
    lines = child.stdout.splitlines()
    assert len(lines) == 3
    assert all("computes with tensorflow" in x and "KERAS_BACKEND=jax" in x for x in lines)
