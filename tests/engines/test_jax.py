"""What JAX computes in its own way is what Keras' operations compute."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion.networks import layers
from keras_diffusion.networks.network import construction
from keras_diffusion.networks.operations import replace_operations

pytestmark = [
    pytest.mark.backend,
    pytest.mark.skipif(keras.backend.backend() != "jax", reason="these are JAX's"),
]


@pytest.mark.parametrize(("mean", "first"), [(0.0, 0.0), (100.0, 0.0), (-1000.0, 0.0), (0.0, 50.0)])
def test_moments_do_not_cancel(mean, first):
    """Also far from zero; where the first position is far from the others, by float32's digits of its square."""
    from keras_diffusion.engines.jax import moments_from_one

    x = np.random.default_rng(0).normal(mean, 1.0, (2, 16, 16, 8)).astype("float32")
    x[:, 0, 0] += first
    found = [keras.ops.convert_to_numpy(part) for part in moments_from_one(keras.ops.convert_to_tensor(x))]
    expected = x.mean((1, 2), "float64", keepdims=True), x.var((1, 2), "float64", keepdims=True)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5 + 1e-7 * first**2, atol=3e-5)
    assert found[1].min() >= 0.0


@pytest.mark.parametrize(("capability", "passes"), [((0, 0), 2), ((7, 5), 1)])
def test_moments_take_one_pass_on_gpus_alone(monkeypatch, capability, passes):
    """On a GPU, mean and variance read the same differences; elsewhere the variance waits for the mean."""
    import jax

    from keras_diffusion.engines import jax as engine

    monkeypatch.setattr(engine, "compute_capability", lambda: capability)
    moments = engine.replaced_operations("jit")["moments"]
    program = jax.jit(lambda x: moments(x)[1]).lower(np.ones((1, 4, 4, 2), "float32")).as_text()
    sizes = [line for line in program.splitlines() if "subtract" in line and "1x4x4x2" in line]
    assert len(sizes) == 1
    before = program[: program.index(sizes[0])]
    assert ("stablehlo.reduce" in before) == (passes == 2)


def test_devices_share_the_rows():
    """Also one guided image, whose negative prompt is a row, and images that do not divide evenly."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    run = subprocess.run(
        [sys.executable, "-m", "tests.engines.draw_on_devices"],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    for (error, share), least in zip(found.values(), (1 / 2, 1 / 6, 1 / 8), strict=True):
        assert error < 1e-5, found
        assert 0.95 * least < share < 1.25 * least, found


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("dtype", ["float32_from_float16", "float32_from_int8"])
def test_stored_kernels_are_expanded_in_turn(dtype, loop):
    """All of them at the start would be the memory of float32 beside the stored ones."""
    import jax

    from keras_diffusion.engines import jax as engine

    with construction(dtype, initialize=False):
        x = inputs = keras.Input((4, 4, 256))
        for i in range(3):
            x = layers.dense(256, f"dense_{i}")(layers.conv(256, f"conv_{i}")(x))
        network = keras.Model(inputs, x)

    def run(values, x):
        with keras.StatelessScope(zip(network.variables, values, strict=True)):
            return ops.fori_loop(0, 5, lambda _, x: network(x), x) if loop else network(x)

    values = [variable.value for variable in network.variables]
    with replace_operations(**engine.replaced_operations("jit")):
        program = jax.jit(run).lower(values, np.zeros((1, 4, 4, 256), "float32")).compile()
    kernel = 4 * 9 * 256 * 256
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * kernel
