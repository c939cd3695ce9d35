"""Which way a network is run."""

import keras
import pytest

from keras_diffusion.architectures import TINY
from keras_diffusion.engines import choice
from keras_diffusion.networks.controlnet import ControlNet, steered
from keras_diffusion.networks.diffusion_model import DiffusionModel

# Importing openvino forks, which JAX warns about once it runs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
SHAPE = (1, 64, 64, 4)
BACKEND = keras.backend.backend()


@pytest.fixture(scope="module")
def network():
    return DiffusionModel(architecture=TINY, initialize=False)


def pick(monkeypatch, network, jit_compile="auto", installed=(), enough=0.0):
    monkeypatch.setattr(choice, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(choice, "device", lambda: "cpu")
    monkeypatch.setattr(choice, "AUTO", {(BACKEND, "cpu"): {"openvino": enough, "inductor": 10 * enough}})
    return choice.pick(jit_compile, network, SHAPE)


def test_small_work_is_not_compiled(monkeypatch, network):
    enough = 2 * choice.count_parameters(network) * 64 * 64
    assert pick(monkeypatch, network, installed=["openvino"], enough=enough) == choice.USUAL[BACKEND]


def test_the_first_that_is_installed_is_taken(monkeypatch, network):
    pytest.importorskip("openvino")
    assert pick(monkeypatch, network, installed=["openvino"]) == "openvino"
    assert pick(monkeypatch, network) == "inductor"
    assert pick(monkeypatch, network, enough=choice.count_parameters(network) * 64 * 32) == choice.USUAL[BACKEND]


def test_openvino_needs_memory(monkeypatch, network):
    pytest.importorskip("openvino")
    needed = choice.OPENVINO_NEEDS * choice.count_parameters(network)
    monkeypatch.setattr("keras_diffusion.memory.physical", lambda: needed)
    assert pick(monkeypatch, network, installed=["openvino"]) == "openvino"
    monkeypatch.setattr("keras_diffusion.memory.physical", lambda: needed - 1)
    assert pick(monkeypatch, network, installed=["openvino"]) == "inductor"
    assert pick(monkeypatch, network, jit_compile="openvino") == "openvino"


def test_what_openvino_does_not_know_it_does_not_get(monkeypatch, network):
    pytest.importorskip("openvino")

    class Own(DiffusionModel):
        def call(self, inputs):
            return -super().call(inputs)

    for other in Own(architecture=TINY, initialize=False), steered(network, (ControlNet(architecture=TINY),)):
        assert pick(monkeypatch, other, installed=["openvino"]) == "inductor"


def test_what_is_asked_for_is_taken(monkeypatch, network):
    assert pick(monkeypatch, network, jit_compile=False) == choice.USUAL[BACKEND]
    assert pick(monkeypatch, network, jit_compile=True) == choice.COMPILED[BACKEND]
    assert pick(monkeypatch, network, jit_compile="openvino") == "openvino"


def test_every_way_has_a_function():
    ways = {way for row in choice.AUTO.values() for way in row}
    assert ways | {*choice.USUAL.values(), *choice.COMPILED.values()} <= set(choice.WAYS)
    assert all(callable(choice.runner(table[BACKEND])) for table in (choice.USUAL, choice.COMPILED))
