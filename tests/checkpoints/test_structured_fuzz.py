"""A sample of what `fuzz.py` reads."""

import pytest

from . import fuzz


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_survives_changed_structures(reader, monkeypatch):
    monkeypatch.setattr(fuzz, "GROWTH", 1_000_000)  # of this process, which runs other tests too
    monkeypatch.setattr(fuzz, "SECONDS", 5)
    outcomes = fuzz.fuzz(reader, 60, seed=1)
    assert len(outcomes) > 5  # some were read, some refused
