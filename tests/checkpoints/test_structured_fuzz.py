"""A sample of what `fuzz.py` reads."""

import pytest

from . import fuzz


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_survives_changed_structures(reader, monkeypatch):
    monkeypatch.setattr(fuzz, "GROWTH", 1_000_000)  # of this process, which runs other tests too
    monkeypatch.setattr(fuzz, "SECONDS", 5)
    found = fuzz.fuzz(reader, 15, seed=1)
    assert found["wrong"] == []
    assert found["cases"] == 15
    assert len(found) > 6  # some were read, some refused
