"""The engine: what is compiled, that loops agree, and what happens to values that are not finite."""

import re
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import Level
from keras_diffusion.components.components import VAE_DTYPE
from keras_diffusion.engines import choice
from keras_diffusion.engines.choice import replaced_operations
from keras_diffusion.engines.engine import Engine, checksum
from keras_diffusion.engines.plan import Plan
from keras_diffusion.engines.stages import Conditions, Rows, decode
from keras_diffusion.engines.stages import denoise as stage
from keras_diffusion.errors import NumericalError
from keras_diffusion.networks import operations
from keras_diffusion.networks.controlnet import ControlNet
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.diffusion_model import DiffusionModel
from keras_diffusion.networks.image_encoder import ImageEncoder
from keras_diffusion.networks.keras_internals import has_value
from keras_diffusion.networks.layers import Attention, GroupNorm
from keras_diffusion.networks.text_encoder import TextEncoder
from keras_diffusion.sampling import noise
from keras_diffusion.sampling.recurrence import COLUMNS, HISTORY
from keras_diffusion.sampling.registry import SAMPLERS
from keras_diffusion.sampling.samplers import build

from ..small import SMALL

# Importing openvino forks, which JAX warns about once it runs.
pytestmark = pytest.mark.filterwarnings(r"ignore:os\.fork\(\) was called:RuntimeWarning")
SHAPE = (8, 8, 4)
COMPILES = keras.backend.backend() != "torch"


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    return DiffusionModel(architecture=SMALL)


@pytest.fixture(scope="module")
def engine():
    return Engine()


def make_decoder(factor=0.5):
    """The least that can be decoded with."""
    latents = keras.Input((None, None, SHAPE[-1]))
    image = keras.layers.Dense(3, kernel_initializer=keras.initializers.Constant(factor))(latents)
    return keras.Model(latents, image, name="decoder")


@pytest.fixture
def decoder():
    return make_decoder()


def denoise(
    engine,
    network,
    sampler="dpmpp_2m",
    num_steps=5,
    guidance=3.0,
    copies=2,
    seeds=(0, 1),
    images=(),
    rows_per_call=1,
    controlnets=(),
    **plan,
):
    context = np.random.default_rng(0).standard_normal((copies * len(seeds), 77, SMALL.text_encoder.width), "float32")
    shares = np.ones((1, SMALL.diffusion_model.residuals), "float32") if images else None
    loop = engine.denoise(
        network,
        noise.starting_noise(seeds, SHAPE),
        Conditions(context, np.full(len(seeds), guidance, "float32"), controls=images, shares=shares),
        Plan(build(sampler, num_steps), lambda steps: noise.step_noise(seeds, SHAPE, steps), **plan),
        rows_per_call,
        controlnets,
    )
    return [(step, timestep, ops.convert_to_numpy(latents)) for step, timestep, latents in loop]


def test_networks_without_values_stay_so(decoder):
    """Those of full size, built for their shapes, would fill the memory."""
    with keras.StatelessScope(initialize_variables=False):
        variable = keras.Variable("zeros", shape=(2,))
    Engine().decode(decoder, np.zeros((1, 2, 2, 4), "float32"))
    assert not has_value(variable)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m", "euler_ancestral"])
def test_rows_in_one_graph_give_what_single_rows_give(engine, network, sampler):
    *_, (step, timestep, one_by_one) = denoise(engine, network, sampler)
    *_, (last_step, last_timestep, together) = denoise(engine, network, sampler, rows_per_call=4)

    assert (step, timestep) == (last_step, last_timestep)
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-6)


def test_the_loop_computes_the_recurrence(engine, network):
    """Against the definition in `samplers`, with the network called directly and guidance written out."""
    seeds, guidance, table = (0, 1), 3.0, build("euler_ancestral", 3)
    generator = np.random.default_rng(0)
    negative, positive = generator.standard_normal((2, 2, 77, SMALL.text_encoder.width), "float32")
    x, history = noise.starting_noise(seeds, SHAPE).astype("float64"), []
    for (t, p, q, a, d, *b), step in zip(table.rows, table.steps, strict=True):
        embedding = network_embedding(t)

        def model(context, x=x, embedding=embedding):
            inputs = {"latent": x.astype("float32"), "timestep_embedding": embedding, "context": context}
            return keras.ops.convert_to_numpy(network({k: keras.ops.convert_to_tensor(v) for k, v in inputs.items()}))

        prediction = (1 - guidance) * model(negative) + guidance * model(positive)
        history.insert(0, p * x + q * prediction)
        z = noise.step_noise(seeds, SHAPE, [step])[0]
        x = a * x + d * z + sum(weight * h for weight, h in zip(b, history, strict=False))

    *_, (_, _, latents) = denoise(engine, network, "euler_ancestral", 3, guidance)
    np.testing.assert_allclose(latents, x, rtol=1e-4, atol=1e-4)


def network_embedding(timestep):
    """The sinusoidal embedding, from its formula."""
    half = SMALL.diffusion_model.frequencies // 2
    angles = timestep * 10000.0 ** (-np.arange(half) / half)
    return np.tile(np.concatenate([np.cos(angles), np.sin(angles)]), (2, 1)).astype("float32")


def test_rows_run_together_where_nobody_looks(monkeypatch):
    """As on JAX with a GPU, which this has every runner do: 12 steps are one call, two if they add noise, or 12."""
    monkeypatch.setattr("keras_diffusion.engines.engine.rows_at_once", lambda runner: 16)
    model, calls, steps = StableDiffusion(preset=SMALL), [], []
    run = model._engine.run
    monkeypatch.setattr(
        model._engine, "run", lambda stage, *inputs: calls.append(stage.__name__) or run(stage, *inputs)
    )

    def draw(sampler, callback=None):
        calls.clear()
        options = {"num_steps": 12, "seed": 0, "verbose": 0, "output": "latents"}
        latents = model.text_to_image("a", sampler=sampler, callback=callback, **options)
        return calls.count("denoise"), latents

    for sampler, expected in ("ddim", 1), ("lcm", 2):
        steps.clear()
        count, together = draw(sampler)
        watched, one_by_one = draw(sampler, lambda step, *_: steps.append(step))
        assert (count, watched, steps) == (expected, 12, list(range(1, 13)))
        np.testing.assert_allclose(together, one_by_one, atol=1e-5)


def test_no_row_is_waited_for_before_the_next_is_started(engine, network, monkeypatch):
    events = []
    run, convert = engine.run, ops.convert_to_numpy
    monkeypatch.setattr(engine, "run", lambda *inputs: events.append("start") or run(*inputs))
    latents, context = noise.starting_noise((0, 1), SHAPE), np.zeros((4, 77, SMALL.text_encoder.width), "float32")
    loop = engine.denoise(network, latents, Conditions(context, np.float32([3.0, 3.0])), Plan(build("ddim", 3)))
    monkeypatch.setattr(ops, "convert_to_numpy", lambda x: events.append("wait") or convert(x))
    for _ in loop:
        events.append("step")
    assert events == ["start", "step", "start", "wait", "step", "start", "wait", "step", "wait"]


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="traces torch's operations")
@pytest.mark.parametrize("stage", ["encode", "encode_image", "denoise", "decode"])
def test_stages_can_be_recorded_as_cuda_graphs(stage):
    """A graph records nothing that is copied from the processor's memory, such as a Python number made a tensor."""
    import torch
    from torch.fx.experimental.proxy_tensor import make_fx

    from keras_diffusion.engines import stages
    from keras_diffusion.engines.torch import FUSED

    model, latents = StableDiffusion(preset=SMALL), np.zeros((1, *SHAPE), "float32")
    factor, text = SMALL.autoencoder.factor, np.zeros((2, 77, SMALL.text_encoder.width), "float32")
    columns, frequencies = build("ddim", 1).rows, SMALL.diffusion_model.frequencies
    rows = stages.Rows(columns, np.zeros((1, 2)), np.zeros((1, frequencies)), latents[None])
    one, drawn = np.ones(1), np.ones((1, *SHAPE[:2], 1), bool)
    inputs = {
        "encode": (model.text_encoder, np.zeros((1, 77), "int32")),
        "encode_image": (model.image_encoder, np.zeros((1, *(factor * side for side in SHAPE[:2]), 3), "float32")),
        "denoise": (
            model.diffusion_model,
            latents,
            np.zeros((HISTORY, *latents.shape), "float32"),
            np.int32(1),
            rows,
            Conditions(text, one, one, None, drawn, latents, latents),
        ),
        "decode": (model.decoder, latents),
    }
    network, *arrays = inputs[stage]
    arrays = keras.tree.map_structure(
        lambda x: x if x is None else torch.as_tensor(x, dtype=torch.float32 if x.dtype == "float64" else None), arrays
    )

    def run(given):
        given = iter(given)
        return getattr(stages, stage)(
            network, *keras.tree.map_structure(lambda x: x if x is None else next(given), arrays)
        )

    with operations.replace_operations(**FUSED), torch.no_grad():
        graph = make_fx(run)([x for x in keras.tree.flatten(arrays) if x is not None])
    assert len(graph.graph.nodes) > 50
    assert not [node for node in graph.graph.nodes if "lift_fresh" in str(node.target)]


@pytest.mark.skipif(
    keras.backend.backend() != "torch" or choice.device() != "gpu", reason="records a CUDA graph of torch"
)
def test_a_recorded_graph_gives_what_layers_give(engine, network, monkeypatch):
    from keras_diffusion.engines import torch as runners

    *_, (_, _, recorded) = denoise(engine, network)
    monkeypatch.setattr(runners, "_captured", lambda run: run)
    *_, (_, _, layers) = denoise(Engine(), network)
    np.testing.assert_allclose(recorded, layers, rtol=1e-3, atol=1e-3)


def test_rows_without_guidance_take_the_prompt_alone(engine, network, monkeypatch):
    contexts, run = [], engine.run
    monkeypatch.setattr(engine, "run", lambda *inputs: contexts.append(len(inputs[-1].context)) or run(*inputs))
    guided = np.array([True, False, False, True, True])
    for rows_per_call in (1, 4):
        contexts.clear()
        *_, (_, _, mixed) = denoise(engine, network, guided=guided, rows_per_call=rows_per_call)
        assert contexts == [4, 2, 2, 4, 4]
    *_, (_, _, without) = denoise(engine, network, guided=guided & False)
    *_, (_, _, scale_of_one) = denoise(engine, network, guidance=1.0)
    *_, (_, _, everywhere) = denoise(engine, network)
    np.testing.assert_allclose(without, scale_of_one, rtol=1e-4, atol=1e-4)
    assert np.abs(mixed - without).max() > 1e-3
    assert np.abs(mixed - everywhere).max() > 1e-3


def test_the_two_that_a_function_made_last_are_kept_until_unload():
    engine, made = Engine(), []

    def make(*given):
        made.append(given)
        return given

    for given in ((1, 2), (1, 2), (3, 2), (1, 2), (4, 2), (1, 2), (3, 2)):
        assert engine.make_once(make, *given) == given
    assert made == [(1, 2), (3, 2), (4, 2), (3, 2)]
    engine.unload()
    engine.make_once(make, 3, 2)
    assert len(made) == 5


@pytest.mark.skipif(not COMPILES, reason="eager torch compiles nothing")
def test_networks_that_the_engine_makes_are_compiled_once(network):
    """A network with ControlNets, and the pair of DeepCache: the plain network stays as it was."""
    engine, controlnet = Engine(), ControlNet(architecture=SMALL, conditioning=(4, 6))
    image = np.zeros((2, 2 * SHAPE[0], 2 * SHAPE[1], 3), "float32")
    steered = {"controlnets": (controlnet,), "scales": np.ones((5, 1), "float32"), "images": (image,)}
    for options, compilations in ((steered, 1), ({"deep": np.array([True, False, False, True, False])}, 3)):
        for _ in range(2):
            denoise(engine, network, **options)
            assert engine.compilations == compilations


@pytest.mark.skipif(not COMPILES, reason="eager torch compiles nothing")
def test_nothing_is_compiled_twice(network):
    engine = Engine()
    denoise(engine, network)
    assert engine.compilations == 1

    for sampler in SAMPLERS:
        denoise(engine, network, sampler, num_steps=3, guidance=9.0, seeds=(5, 9))
    denoise(engine, network, num_steps=12)
    assert engine.compilations == 1

    denoise(engine, network, seeds=(0,))
    assert engine.compilations == 2  # another batch size


@pytest.mark.skipif(not COMPILES, reason="eager torch compiles nothing")
def test_the_latest_sizes_stay_compiled(decoder, monkeypatch):
    """Each takes memory, and a server may be asked for any number of them."""
    engine = Engine()
    monkeypatch.setitem(choice.KEPT_SHAPES, choice.DEFAULT_RUNNERS[keras.backend.backend()], 2)
    for width, compilations in ((1, 1), (2, 2), (1, 2), (3, 3), (1, 3), (2, 4)):
        engine.decode(decoder, np.zeros((1, 1, width, 4), "float32"))
        assert engine.compilations == compilations
    ((_, programs),) = engine._compiled.values()
    assert [shape[2] for (shape,) in programs] == [1, 2]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a warning of TensorFlow's")
def test_many_sizes_raise_no_warning(engine, decoder, caplog):
    import tensorflow as tf

    tf.get_logger().addHandler(caplog.handler)
    for size in range(1, 8):
        engine.decode(decoder, np.zeros((1, size, 1, 4), "float32"))
    tf.get_logger().removeHandler(caplog.handler)
    assert not caplog.records


@pytest.mark.skipif(not COMPILES, reason="eager torch compiles nothing")
def test_contexts_of_another_length_are_compiled_once():
    engine, encoder = Engine(), TextEncoder(architecture=SMALL)
    for clip_skip in (0, 1, 1, 0):
        engine.encode(encoder, np.zeros((1, 77), "int32"), clip_skip)
    assert engine.compilations == 2  # with blocks left out, and without


def test_another_network_takes_its_place(decoder):
    engine, latents = Engine(), noise.starting_noise((0,), SHAPE)
    first, second, third = (engine.decode(each, latents) for each in (decoder, make_decoder(0.4), decoder))
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(first, third)


def test_loaded_weights_take_effect(network, engine):
    *_, (_, _, before) = denoise(engine, network)
    weights = network.get_weights()
    network.set_weights([w * 0.5 for w in weights])
    *_, (_, _, after) = denoise(engine, network)
    network.set_weights(weights)

    assert not np.allclose(before, after)


def test_values_that_are_not_finite_name_the_stage(engine, network, decoder):
    bias = network.get_layer("conv_out").bias
    kept = ops.convert_to_numpy(bias).copy()
    bias.assign(np.full(bias.shape, np.nan))
    with pytest.raises(NumericalError, match="Denoising step 1 "):
        denoise(engine, network)
    bias.assign(kept)
    with pytest.raises(NumericalError, match="Decoding"):
        engine.decode(decoder, np.full((1, *SHAPE), np.nan, "float32"))

    encoder = TextEncoder(architecture=SMALL)
    encoder.get_layer("final_layer_norm").beta.assign(np.full(SMALL.text_encoder.width, np.inf))
    with pytest.raises(NumericalError, match="Text encoding"):
        engine.encode(encoder, np.zeros((1, 77), "int32"))


def test_images_are_rounded_and_clipped(engine):
    """Latents of any size give bytes; a decoder whose last bias is known gives known bytes."""
    decoder = Decoder(architecture=SMALL, initialize=False)
    decoder.get_layer("conv_out").bias.assign([-3.0, 0.0, 0.5])
    images = engine.decode(decoder, np.zeros((1, 2, 3, 4), "float32"))

    assert images.dtype == np.uint8
    assert images.shape == (1, 4, 6, 3)
    assert np.unique(images.reshape(-1, 3), axis=0).tolist() == [[0, 128, 191]]


# ---- What a compiled step is made of


def test_attention_scores_stay_small(network, engine, monkeypatch):
    """At 64 × 64 latents all scores of a layer would be 64 times as many."""
    sizes, softmax = [], ops.softmax
    monkeypatch.setattr(ops, "softmax", lambda x: sizes.append(np.prod(x.shape)) or softmax(x))
    latents = noise.starting_noise((0,), (64, 64, 4))
    context = np.zeros((2, 77, SMALL.text_encoder.width), "float32")
    next(engine.denoise(network, latents, Conditions(context, np.float32([3.0])), Plan(build("ddim", 1))))
    assert all(size < 2 * operations.SCORES for size in sizes)
    assert sizes or keras.backend.backend() == "torch"


only_jax = pytest.mark.skipif(keras.backend.backend() != "jax", reason="lowers a JAX program")
# Heads of Stable Diffusion 1's widths, 40 and 160.
WIDE_HEADS = replace(
    SMALL, diffusion_model=replace(SMALL.diffusion_model, levels=(Level(80, 2, 1), Level(320, 2, 1)), groups=8)
)
CARDS = {  # compute capability, and the widths of heads that cuDNN attends over
    "T4": ((7, 5), ()),
    "A100": ((8, 0), (40,)),
    "H100": ((9, 0), (40, 160)),
}


@only_jax
@pytest.mark.parametrize(
    ("capability", "width"),
    [((0, 0), 0), ((7, 0), 0), ((7, 5), 0), ((8, 0), 128), ((8, 9), 128), ((9, 0), 256), ((10, 0), 256)],
)
def test_which_cards_have_flash_attention(capability, width):
    from keras_diffusion.engines.jax import widest_flash_head

    assert widest_flash_head(capability) == width


@pytest.fixture
def program(monkeypatch):
    """A function that lowers a stage for a card that is not there, to the lines of its program."""
    import jax
    from jax import export
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    def lower(capability, stage, network, *inputs):
        monkeypatch.setattr("keras_diffusion.engines.jax.compute_capability", lambda: capability)
        monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(
            cudnn, "check_compute_capability", lambda least: capability >= tuple(map(int, least.split(".")))
        )

        def run(variables, *inputs):
            with keras.StatelessScope(zip(network.variables, variables, strict=True)):
                return stage(network, *inputs)

        variables = [jax.ShapeDtypeStruct(variable.shape, variable.dtype) for variable in network.variables]
        checks = [export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
        with operations.replace_operations(**replaced_operations("jit")):
            exported = export.export(jax.jit(run), platforms=["cuda"], disabled_checks=checks)(variables, *inputs)
        return exported.mlir_module().splitlines()

    return lower


def array(*shape):
    import jax

    return jax.ShapeDtypeStruct(shape, "float32")


def step_inputs(architecture):
    shape = architecture.diffusion_model
    rows = Rows(array(1, len(COLUMNS)), array(1, 2), array(1, shape.frequencies), array(1, 2, *SHAPE))
    conditions = Conditions(array(4, 77, shape.context), array(2))
    return array(2, *SHAPE), array(HISTORY, 2, *SHAPE), array(), rows, conditions


def lines(program, operation):
    return [line for line in program if re.search(rf"\b{operation}\b", line)]


@only_jax
@pytest.mark.parametrize("card", CARDS)
def test_the_program_for_cuda(program, card):
    """Each convolution once and channels last as it comes; half precision and float32 where each belongs."""
    capability, widths = CARDS[card]
    half = DiffusionModel(architecture=WIDE_HEADS, dtype="mixed_float16")
    code = program(capability, stage, half, *step_inputs(WIDE_HEADS))

    def number(kind):
        return sum(isinstance(layer, kind) for layer in half._flatten_layers())

    heads = [layer.to_q.units // layer.heads for layer in half._flatten_layers() if isinstance(layer, Attention)]
    fused = sum(width in widths for width in heads)
    halves, flash = r"\(tensor<\S+xf16>, tensor<\S+xf16>", r"custom_call @__cudnn\$fmhaSoftmax"
    assert len(lines(code, "stablehlo.convolution")) == number(keras.layers.Conv2D)
    assert len(lines(code, f"stablehlo.{flash}")) == fused
    for operation in ("convolution", "dot_general", flash):
        assert all(re.search(halves, line) for line in lines(code, f"stablehlo.{operation}"))
    # Query, key twice, value and result where we attend, the result where cuDNN does; none of feature maps.
    assert len(lines(code, "stablehlo.transpose")) == 5 * (len(heads) - fused) + fused
    assert len(lines(code, "stablehlo.exponential")) >= len(heads) - fused
    # Softmax, norms and what is summed for them: float32. Only the timestep's embedding, (b, c), is not.
    for operation in ("exponential", "rsqrt", "reduce", "logistic"):
        assert not [line for line in lines(code, f"stablehlo.{operation}") if re.search(r"<(\d+x){3,}f16>", line)]
    assert len(lines(code, "stablehlo.rsqrt")) == number(GroupNorm) + number(keras.layers.LayerNormalization)


@only_jax
def test_the_autoencoder_for_cuda_has_no_half_precision(program):
    code = program((9, 0), decode, Decoder(architecture=SMALL, dtype=VAE_DTYPE), array(1, *SHAPE))
    assert lines(code, "stablehlo.convolution")
    assert not [line for line in code if "f16" in line]


@only_jax
def test_programs_of_an_image():
    """One for each stage, whatever the number of steps; and another image compiles nothing."""
    import jax

    compiled, ran = [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: "backend_compile" in event and compiled.append(about)
    )
    model = StableDiffusion(preset=SMALL)
    run = model._engine.run
    model._engine.run = lambda stage, *given: ran.append(stage.__name__) or run(stage, *given)
    model.text_to_image("a cat", num_steps=3, seed=0, verbose=0)
    assert ran == ["encode", "encode", "denoise", "denoise", "denoise", "decode"]
    assert model._engine.compilations == 3
    compiled.clear()
    model.text_to_image("a dog", num_steps=7, sampler="heun", seed=1, verbose=0)
    assert not compiled


# ---- OpenVINO


@pytest.fixture
def openvino():
    pytest.importorskip("openvino")
    return Engine("openvino")


def test_openvino_gives_the_same(network, engine, openvino):
    for copies in 2, 1:
        *_, (_, _, expected) = denoise(engine, network, copies=copies)
        for rows_per_call in 1, 4:
            *_, (_, _, latents) = denoise(openvino, network, copies=copies, rows_per_call=rows_per_call)
            np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)


def test_openvino_compiles_once_for_a_shape(network, openvino):
    for sampler in ("ddim", "heun"):
        denoise(openvino, network, sampler, num_steps=3)
    assert openvino.compilations == 1
    denoise(openvino, network, seeds=(0,))
    assert openvino.compilations == 2


def test_openvino_is_not_compiled_again_where_guidance_pauses(network, engine, openvino):
    guided = np.array([False, True, True, False, False])
    *_, (_, _, expected) = denoise(engine, network, guided=guided)
    *_, (_, _, latents) = denoise(openvino, network, guided=guided)
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-4)
    assert openvino.compilations == 1


def test_openvino_sees_loaded_weights(network, openvino):
    test_loaded_weights_take_effect(network, openvino)
    assert openvino.compilations == 2


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="only torch has weights in another order in memory")
def test_a_checksum_turns_no_weights():
    values = np.zeros((64, 64, 3, 3), "float32").transpose(2, 3, 1, 0)
    network = SimpleNamespace(variables=[ops.convert_to_tensor(values)])
    before = checksum(network)
    tracemalloc.start()
    assert checksum(network) == before
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * values.nbytes  # Keras copies them once
    network.variables[0][0, 0, 0, 1] = 1
    assert checksum(network) != before


def test_openvino_encodes_and_decodes(engine, openvino):
    keras.utils.set_random_seed(0)
    tokens, latents = np.arange(77, dtype="int32")[None], noise.starting_noise((0,), SHAPE)
    encoder, decoder, image_encoder = (network(architecture=SMALL) for network in (TextEncoder, Decoder, ImageEncoder))
    image = latents.repeat(2, axis=1).repeat(2, axis=2)[..., :3]
    for run in (
        lambda engine: engine.encode(encoder, tokens),
        lambda engine: engine.encode_image(image_encoder, image),
        lambda engine: engine.decode(decoder, latents).astype(float) / 255,
    ):
        np.testing.assert_allclose(run(openvino), run(engine), rtol=0, atol=1.001 / 255)


def test_openvino_serves_many_threads(openvino):
    keras.utils.set_random_seed(0)
    decode = partial(openvino.decode, Decoder(architecture=SMALL))
    latents = [noise.starting_noise((seed,), (8 + seed // 24, 8, 4)) for seed in range(32)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(decode, latents))
    for alone, image in zip(map(decode, latents), together, strict=True):
        np.testing.assert_array_equal(image, alone)


def test_openvino_must_be_installed(monkeypatch):
    monkeypatch.setattr("keras_diffusion.engines.engine.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install openvino"):
        Engine("openvino")


@pytest.mark.parametrize("jit_compile", [None, 2, "yes", 1, 0, 1.0, np.True_, np.array([True, False])])
def test_jit_compile_is_checked(jit_compile):
    with pytest.raises(ValueError, match="Received: jit_compile="):
        Engine(jit_compile)


@pytest.fixture
def graphs(monkeypatch):
    """What torch is given to compile, which takes minutes and is left out; eager torch rounds as it does."""
    torch, graphs = pytest.importorskip("torch"), []
    monkeypatch.setattr(torch, "compile", lambda graph, dynamic: graphs.append(graph) or graph)
    if keras.backend.backend() == "torch":
        monkeypatch.setattr("keras_diffusion.engines.torch.ONEDNN", False)
    return graphs


def test_compiled_code_gives_the_same(graphs):
    shape = replace(SMALL.diffusion_model, levels=SMALL.diffusion_model.levels[:1])  # XLA takes its time
    network = DiffusionModel(architecture=replace(SMALL, diffusion_model=shape))
    *_, (_, _, plain) = denoise(Engine(jit_compile=False), network, num_steps=2)
    *_, (_, _, compiled) = denoise(Engine(jit_compile=True), network, num_steps=2)
    np.testing.assert_allclose(compiled, plain, rtol=0, atol=1e-4)


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others compile in their own way")
def test_torch_compiles_whole_graphs_that_take_the_weights(network, engine, graphs):
    compiled = Engine(jit_compile=True)
    test_loaded_weights_take_effect(network, compiled)
    assert compiled.compilations == len(graphs) == 1
    encoder, tokens = TextEncoder(architecture=SMALL), np.arange(77, dtype="int32")[None]
    for clip_skip in (0, 1, 2, 1):
        expected, found = (engine.encode(encoder, tokens, clip_skip) for engine in (engine, compiled))
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert compiled.compilations == len(graphs) == 3
    modules = [{type(module).__name__ for module in graph.modules()} for graph in graphs]
    assert modules == [{"by_values"}] * 3  # operations, and no layer
