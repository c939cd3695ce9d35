"""A sample of what `fuzz.py` reads."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("fuzz.py")


@pytest.mark.parametrize("format", ["zip", "pickle", "legacy", "safetensors", "hdf5"])
def test_survives_damaged_files(format):
    command = [sys.executable, SCRIPT, "--format", format, "--count", "300", "--seed", "1"]
    outcomes = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    assert 0 < outcomes["read"] < 200
    assert outcomes["CorruptCheckpointError"] > 100
