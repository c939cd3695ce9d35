"""The committed fixtures are what their script derives."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

from . import networks

MISSING = [package for package in ("diffusers", "torch", "transformers") if find_spec(package) is None]


@pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")
def test_fixtures_are_what_the_references_compute():
    command = [sys.executable, networks.HERE / "make_networks.py", "--check"]
    script = subprocess.run(command, capture_output=True, text=True)
    assert script.returncode == 0, script.stderr
