"""Which runner a network gets."""

import keras
import pytest

from keras_diffusion.architectures import TINY
from keras_diffusion.engines import choice
from keras_diffusion.engines.engine import Engine
from keras_diffusion.networks.controlnet import ControlNet, with_controlnets
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
    return choice.choose_runner(jit_compile, network, SHAPE)


def test_small_work_is_not_compiled(monkeypatch, network):
    enough = 2 * choice.count_parameters(network) * 64 * 64
    assert pick(monkeypatch, network, installed=["openvino"], enough=enough) == choice.DEFAULT_RUNNERS[BACKEND]


def test_the_first_that_is_installed_is_taken(monkeypatch, network):
    pytest.importorskip("openvino")
    assert pick(monkeypatch, network, installed=["openvino"]) == "openvino"
    assert pick(monkeypatch, network) == "inductor"
    assert (
        pick(monkeypatch, network, enough=choice.count_parameters(network) * 64 * 32) == choice.DEFAULT_RUNNERS[BACKEND]
    )


def test_openvino_needs_memory(monkeypatch, network):
    pytest.importorskip("openvino")
    needed = choice.OPENVINO_NEEDS * choice.count_parameters(network)
    monkeypatch.setattr("keras_diffusion.system.memory.physical_memory", lambda: needed)
    assert pick(monkeypatch, network, installed=["openvino"]) == "openvino"
    monkeypatch.setattr("keras_diffusion.system.memory.physical_memory", lambda: needed - 1)
    assert pick(monkeypatch, network, installed=["openvino"]) == "inductor"
    assert pick(monkeypatch, network, jit_compile="openvino") == "openvino"


def test_what_openvino_does_not_know_it_does_not_get(monkeypatch, network):
    pytest.importorskip("openvino")

    class Own(DiffusionModel):
        def call(self, inputs):
            return -super().call(inputs)

    for other in Own(architecture=TINY, initialize=False), with_controlnets(network, (ControlNet(architecture=TINY),)):
        assert pick(monkeypatch, other, installed=["openvino"]) == "inductor"


def test_what_is_asked_for_is_taken(monkeypatch, network):
    assert pick(monkeypatch, network, jit_compile=False) == choice.DEFAULT_RUNNERS[BACKEND]
    assert pick(monkeypatch, network, jit_compile=True) == choice.COMPILING_RUNNERS[BACKEND]
    assert pick(monkeypatch, network, jit_compile="openvino") == "openvino"


def test_every_way_has_a_function():
    runners = {runner for row in choice.AUTO.values() for runner in row}
    assert runners | {*choice.DEFAULT_RUNNERS.values(), *choice.COMPILING_RUNNERS.values()} <= set(choice.RUNNERS)
    assert all(
        callable(choice.load_runner(table[BACKEND])) for table in (choice.DEFAULT_RUNNERS, choice.COMPILING_RUNNERS)
    )


@pytest.mark.backend
def test_several_devices_are_named_where_one_draws(caplog):
    Engine()
    assert not caplog.records
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with tf.distribute.OneDeviceStrategy("CPU:0").scope():
            Engine()
        assert "One device draws on tensorflow; several draw on KERAS_BACKEND=jax" in caplog.text
        caplog.clear()
    if keras.backend.backend() == "torch":  # for which Keras has no distributions
        return
    device = keras.distribution.list_devices()[0]
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=[device]))
    try:
        Engine()
        assert ("One device draws" in caplog.text) == (keras.backend.backend() != "jax")
    finally:
        keras.distribution.set_distribution(None)
