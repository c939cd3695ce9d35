"""LoRAs in the weights of networks: outputs as in diffusers, and taken out without a trace."""

import pickle
import shutil

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion import CheckpointMismatchError, StableDiffusion, TextEncoder
from keras_diffusion.architectures import DTYPES, INT8
from keras_diffusion.checkpoints.adapters import kinds, lora_file, peft_config
from keras_diffusion.checkpoints.mapping.layer_tables import LAYOUTS
from keras_diffusion.networks.timesteps import timestep_embedding

from ...golden import lora, networks

NETWORKS = {"text_encoder": "text_encoder", "unet": "diffusion_model"}  # part of the fixture → network
PEFT, KOHYA = lora.FILES.values()


def build(dtype=None):
    model = StableDiffusion(preset=lora.ARCHITECTURE, dtype=dtype)
    for name in NETWORKS.values():
        networks.fill(getattr(model, name), name, lora.ARCHITECTURE)
    return model


@pytest.fixture(scope="module")
def built():
    return build()


@pytest.fixture
def model(built):
    yield built
    built.unload_lora()


def bits(model):
    """The bytes of every variable."""
    variables = [variable for name in NETWORKS.values() for variable in getattr(model, name).variables]
    return [np.array(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables]


def output(model, part):
    inputs = list(lora.inputs(part))
    if part == "unet":
        inputs[1] = timestep_embedding(inputs[1], lora.ARCHITECTURE.diffusion_model.frequencies)
    return keras.ops.convert_to_numpy(getattr(model, NETWORKS[part])(inputs))


def deviation(model, case):
    """How far the outputs are from the fixture's."""
    with np.load(lora.FIXTURE) as fixture:
        return max(np.abs(output(model, part) - fixture[f"{case}_{part}"]).max() for part in NETWORKS)


def test_a_lora_for_few_steps_brings_its_sampler_and_defaults(model, tmp_path):
    path = shutil.copy(KOHYA, tmp_path / "Hyper-SD15-8steps-lora.safetensors")
    before = model.sampler, model.schedule, model.defaults
    name = model.load_lora(path)
    during = "ddim", "trailing", (8, 1)
    assert (model.sampler, model.schedule["spacing"], model.defaults) == during
    model.load_lora(PEFT)
    model.set_lora_scale(name, 0)
    assert (model.sampler, model.schedule, model.defaults) == before
    model.set_lora_scale(name, 0.5)
    assert (model.sampler, model.schedule["spacing"], model.defaults) == during
    model.unload_lora(name)
    model.lora_folder = tmp_path
    for _ in range(2):
        with model._loras_of_prompt(f"a cat <lora:{name}:1>", True):
            assert model.defaults == (8, 1)
        assert (model.sampler, model.schedule, model.defaults) == before


@pytest.mark.backend
@pytest.mark.parametrize("case", lora.CASES)
def test_outputs_are_those_of_diffusers(model, case):
    for name, scale in lora.CASES[case].items():
        assert model.load_lora(lora.FILES[name], scale, name) == name
    assert model.loras == lora.CASES[case]
    assert deviation(model, case) < 1e-5


@pytest.mark.parametrize(
    ("change", "case"),
    [
        ((peft_config, "METADATA", ""), "peft"),
        ((lora_file, "number", lambda alpha: 1.4), "kohya"),
        ((lora_file, "factor", lambda *_: 1.0), "peft"),
        ((kinds, "LAYOUTS", {name: (lambda x, f=f: f(x[::-1]), None) for name, (f, _) in LAYOUTS.items()}), "kohya"),
    ],
)
def test_the_fixture_shows_a_change(model, monkeypatch, change, case):
    monkeypatch.setattr(*change)
    model.load_lora(lora.FILES[case])
    assert deviation(model, case) > 1e-2


@pytest.mark.backend("float32", "float32_from_float16")
@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype not in INT8])  # which take no LoRA
def test_unloading_leaves_no_trace(dtype):
    model = build(dtype)
    before = bits(model)
    model.load_lora(PEFT)
    one = bits(model)
    model.load_lora(KOHYA, scale=-0.3, name="other")
    assert len({tuple(state) for state in (before, one, bits(model))}) == 3

    model.unload_lora("other")
    assert bits(model) == one
    assert model.loras == {"lora_peft": 1.0}
    model.unload_lora("lora_peft")
    assert bits(model) == before
    assert model.loras == {}
    assert not model._loras._originals


def test_order_does_not_matter(model):
    files = {"peft": PEFT, "kohya": KOHYA, "again": PEFT}
    states = []
    for order in (["peft", "kohya", "again"], ["again", "peft", "kohya"]):
        for name in order:
            model.load_lora(files[name], 0.3, name)
        states.append(bits(model))
        model.unload_lora()
    assert states[0] == states[1]

    for name in files:
        model.load_lora(files[name], 0.3, name)
    model.unload_lora("peft")
    rest = bits(model)
    model.unload_lora()
    model.load_lora(PEFT, 0.3, "again")
    model.load_lora(KOHYA, 0.3, "kohya")
    assert bits(model) == rest


def test_originals_are_kept_once(model):
    model.load_lora(PEFT)
    held = {layer: id(values) for layer, values in model._loras._originals.items()}
    model.load_lora(KOHYA)
    assert {layer: id(values) for layer, values in model._loras._originals.items()} == held


@pytest.mark.backend
def test_scales_change_without_reading_the_file(model, tmp_path):
    path = shutil.copy(PEFT, tmp_path / "some.safetensors")
    before = bits(model)
    model.load_lora(path)
    one = bits(model)
    path.unlink()
    model.set_lora_scale("some", 0)
    assert bits(model) == before
    model.set_lora_scale("some", {"text_encoder": 1, "diffusion_model": 1})
    assert bits(model) == one
    assert model.loras == {"some": {"text_encoder": 1, "diffusion_model": 1}}


def test_networks_and_blocks_have_scales_of_their_own(model):
    values = {}
    for scale in (0, 1):
        model.load_lora(PEFT, scale, "some")
        values[scale] = by_name(model)
        model.unload_lora()
    model.load_lora(PEFT, {"text_encoder": 0.5, "diffusion_model": 0, "mid_block": 1, "up_blocks.1.resnets": 1}, "some")
    for name, after in by_name(model).items():
        ones = "/mid_block." in name or "/up_blocks.1.resnets." in name
        share = 1 if ones else 0.5 if name.startswith("text_encoder/") else 0
        np.testing.assert_allclose(after, (1 - share) * values[0][name] + share * values[1][name], atol=1e-6)
    model.set_lora_scale("some", {"encoder.layers.0": 0})  # 1 for all others
    for name, after in by_name(model).items():
        np.testing.assert_array_equal(after, values[0 if "/encoder.layers.0." in name else 1][name])


def by_name(model):
    targets = lora_file.targets({name: getattr(model, name) for name in NETWORKS.values()})
    return {name: np.array(keras.ops.convert_to_numpy(target.variable)) for name, target in targets.items()}


@pytest.mark.backend
def test_nothing_is_compiled_again(model):
    settings = {"seed": 0, "num_steps": 2, "verbose": 0}
    before = model.text_to_image("a cat", **settings)
    compilations = model._engine.compilations
    model.load_lora(PEFT)
    changed = model.text_to_image("a cat", **settings)
    model.set_lora_scale("lora_peft", {"mid_block": 0.3})
    weaker = model.text_to_image("a cat", **settings)
    model.unload_lora()
    after = model.text_to_image("a cat", **settings)

    assert model._engine.compilations == compilations
    assert not np.array_equal(before, changed)
    assert not np.array_equal(weaker, changed)
    np.testing.assert_array_equal(before, after)


def test_an_overflow_changes_nothing():
    model = build("float16")
    model.load_lora(KOHYA)
    before = bits(model)
    with pytest.raises(CheckpointMismatchError, match=r"overflows in float16.*smaller scale"):
        model.load_lora(PEFT, scale=1e7)
    assert bits(model) == before
    assert model.loras == {"lora_kohya": 1.0}
    model.unload_lora()
    assert bits(model) == bits(build("float16"))


def test_an_interruption_changes_nothing(model, monkeypatch):
    model.load_lora(KOHYA)
    before, fuse, calls = bits(model), model._loras._fuse, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        fuse(*arguments)

    monkeypatch.setattr(model._loras, "_fuse", interrupted)
    with pytest.raises(KeyboardInterrupt):
        model.load_lora(PEFT)
    monkeypatch.undo()
    assert bits(model) == before
    assert model.loras == {"lora_kohya": 1.0}


@pytest.mark.parametrize("at", [0.2, 0.8])  # while the LoRA of a prompt is put in, and while it is taken out
def test_an_interrupted_call_takes_out_the_loras_of_its_prompt(model, monkeypatch, at):
    model.load_lora(KOHYA)
    before, fuse, calls, last = bits(model), model._loras._fuse, [], [-1]
    networks = {name: getattr(model, name) for name in NETWORKS.values()}

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == last[0]:
            raise KeyboardInterrupt
        fuse(*arguments)

    def call():
        with model._loras.during({"peft": PEFT}, {"peft": 1.0}, **networks):
            assert bits(model) != before

    monkeypatch.setattr(model._loras, "_fuse", interrupted)
    call()
    last[0] = len(calls) + int(len(calls) * at)
    with pytest.raises(KeyboardInterrupt):
        call()
    assert bits(model) == before
    assert model.loras == {"lora_kohya": 1.0}


def test_loras_are_pickled(model):
    """So that a model that has some can be, see `tests/system/stress.py`."""
    model.load_lora(PEFT, -0.5, "peft")
    ((scale, changes),) = pickle.loads(pickle.dumps(model._loras._loaded)).values()
    assert scale == -0.5
    assert changes.keys() == model._loras._loaded["peft"][1].keys()
    every = [kind for each in kinds.KINDS.values() for kind in each]
    assert all(pickle.loads(pickle.dumps(kind)) is kind for kind in every)


def test_a_file_that_does_not_fit_changes_nothing(model, tmp_path):
    before = bits(model)
    tensors = load_file(KOHYA)
    tensors.pop(next(reversed(tensors)))
    save_file(tensors, tmp_path / "cut.safetensors")
    with pytest.raises(CheckpointMismatchError):
        model.load_lora(tmp_path / "cut.safetensors")
    assert bits(model) == before
    assert model.loras == {}


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"scale": "1"}, TypeError, "`scale` must be a finite number"),
        ({"scale": True}, TypeError, "`scale` must be a finite number"),
        ({"scale": float("nan")}, ValueError, "`scale` must be a finite number"),
        ({"scale": {"mid_block": "1"}}, TypeError, r"`scale\['mid_block'\]` must be a finite number"),
        ({"scale": {"unet": 1}}, ValueError, r"network \(text_encoder, diffusion_model\) or a block.*Received: 'unet'"),
        ({"scale": {"down_blocks.2": 1}}, ValueError, "Received: 'down_blocks.2'"),
        ({"name": 3}, TypeError, "`name` must be a str"),
        ({"name": "taken"}, ValueError, "is loaded"),
        ({"path": "nowhere.safetensors"}, FileNotFoundError, "nowhere"),
        ({"path": "."}, FileNotFoundError, "a folder and no file"),
    ],
)
def test_wrong_arguments(model, arguments, error, message):
    model.load_lora(PEFT, name="taken")
    with pytest.raises(error, match=message):
        model.load_lora(**{"path": PEFT, **arguments})
    assert model.loras == {"taken": 1.0}


def test_unloading_names_what_is_loaded(model):
    model.load_lora(PEFT)
    with pytest.raises(ValueError, match=r"lora_peft.*Received: name='peft'"):
        model.unload_lora("peft")
    with pytest.raises(ValueError, match=r"lora_peft.*Received: name='peft'"):
        model.set_lora_scale("peft", 1)


def test_a_replaced_network_keeps_its_loras(model):
    before, network = bits(model), model.text_encoder
    model.load_lora(PEFT)
    model.text_encoder = TextEncoder(architecture=lora.ARCHITECTURE)
    with pytest.raises(ValueError, match="was replaced"):
        model.load_lora(KOHYA)
    model.unload_lora()
    model.text_encoder = network
    assert bits(model) == before


def test_the_bundled_model_draws_with_a_lora(tmp_path):
    model = StableDiffusion.from_preset("emoji")
    before, random, tensors = bits(model), np.random.default_rng(0), {}
    for key, target in lora_file.targets({"diffusion_model": model.diffusion_model}).items():
        if len(target.shape) == 1:
            continue
        out, into, *kernel = target.shape
        name = "lora_unet_" + key.partition("/")[2].removesuffix(".weight").replace(".", "_")
        tensors[f"{name}.lora_down.weight"] = random.normal(0, 0.1, (4, into, *kernel)).astype("float16")
        tensors[f"{name}.lora_up.weight"] = random.normal(0, 0.1, (out, 4, *[1] * len(kernel))).astype("float16")
        tensors[f"{name}.alpha"] = np.array(2)
    save_file(tensors, tmp_path / "strange.safetensors")
    settings = {"seed": 1, "num_steps": 3, "verbose": 0}
    plain = model.text_to_image("a slice of pizza", **settings)
    model.load_lora(tmp_path / "strange.safetensors", scale=0.2)
    strange = model.text_to_image("a slice of pizza", **settings)
    model.unload_lora("strange")

    assert np.abs(strange.astype(int) - plain).mean() > 1
    assert bits(model) == before
    np.testing.assert_array_equal(model.text_to_image("a slice of pizza", **settings), plain)
