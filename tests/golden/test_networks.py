"""The committed fixtures are what their script derives."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from . import networks

MISSING = [package for package in ("diffusers", "torch", "transformers") if find_spec(package) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")
@pytest.mark.parametrize("script", ["make_networks.py", "make_controlnet.py", "make_adapter.py"])
def test_fixtures_are_what_the_references_compute(script):
    command = [sys.executable, networks.HERE / script, "--check"]
    script = subprocess.run(command, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
