"""Whole models in one file: written and read exactly, inferred from their shapes, and refused for what they are."""

import json
import logging
from dataclasses import replace

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion.architectures import (
    ARCHITECTURES,
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.formats import safetensors
from keras_diffusion.checkpoints.formats.tensors import Tensor
from keras_diffusion.checkpoints.layouts import ldm, single_file
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.checkpoints.layouts.single_file import SingleFile
from keras_diffusion.checkpoints.mapping.loading import find_targets
from keras_diffusion.checkpoints.mapping.names import folders, rows
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

SDXL = Architecture(
    "custom",
    TextEncoderShape(width=64, layers=2, heads=1, vocabulary=50, penultimate=True),
    DiffusionModelShape(
        levels=(Level(64, 1, 0), Level(64, 1, (1, 2), (2, 1, 1))),
        middle=(0,),
        context=64 + 128,
        linear_projection=True,
        added=24 + 6 * 8,
        id_width=8,
    ),
    AutoencoderShape(channels=(32, 64), blocks=1, scaling_factor=0.13025),
    image_size=1024,
    text_encoder_2=TextEncoderShape(
        width=128, layers=2, heads=2, activation="gelu", pad_token=0, vocabulary=50, penultimate=True, projection=24
    ),
    zero_negative=True,
)
LIKE = {  # small models whose heads and groups are those that shapes imply
    "sd1": Architecture(
        "custom",
        TextEncoderShape(width=64, layers=2, heads=1, vocabulary=50),
        DiffusionModelShape(levels=(Level(32, 8, 1), Level(64, 8, 0)), blocks=1, context=64),
        AutoencoderShape(channels=(32, 64), blocks=1),
    ),
    "sd2": Architecture(
        "custom",
        TextEncoderShape(width=128, layers=3, heads=2, activation="gelu", pad_token=0, vocabulary=50),
        DiffusionModelShape(
            levels=(Level(64, 1, 2), Level(128, 2, 1)), blocks=1, context=128, in_channels=9, linear_projection=True
        ),
        AutoencoderShape(channels=(32, 64), blocks=2),
    ),
    "sdxl": SDXL,
    "sdxl_refiner": replace(
        SDXL,
        text_encoder=None,
        diffusion_model=replace(SDXL.diffusion_model, middle=(1, 0), context=128, added=24 + 5 * 8),
        zero_negative=False,
    ),
}
BETAS = {"betas": np.zeros(1000, "float32"), "posterior_mean_coef1": np.zeros(1000), "logvar": np.zeros(1000)}


def assert_equal(one, other):
    for name in one:
        for path in one[name]:
            np.testing.assert_array_equal(one[name][path], other[name][path], strict=True)


def table(architecture):
    return [row for network in architecture.networks for row in rows(network, architecture)]


def randomised(networks):
    random = np.random.default_rng(0)
    for network in networks.values():
        for variable in network.variables:
            variable.assign(random.normal(size=tuple(variable.shape)).astype("float32"))
    return networks


@pytest.fixture(scope="module")
def model(build):
    """By name: an architecture and its networks, with random values that are not to be changed."""
    return {name: (architecture, randomised(build(architecture))) for name, architecture in LIKE.items()}


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """Their files, not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    for name, (architecture, networks) in model.items():
        single_file.save(folder / name, architecture, **networks)
    return folder


@pytest.fixture
def foreign(written, tmp_path):
    """Writes a file as other programs do, without our metadata, after a change of its tensors; gives its path."""

    def foreign(name, change=lambda tensors: tensors, metadata=None):
        tensors = {key: np.asarray(array, order="C") for key, array in change(load_file(written / name)).items()}
        save_file(tensors, tmp_path / "foreign.bin", metadata)
        return tmp_path / "foreign.bin"

    return foreign


@pytest.fixture
def others(emptied):
    """Fills other networks of an architecture from a file."""

    def others(path, architecture, **options):
        networks = emptied(architecture)
        SingleFile(path, **options).load(**networks)
        return networks

    return others


# ---- What is exact


@pytest.mark.backend
@pytest.mark.parametrize("name", LIKE)
def test_round_trip_is_exact(model, written, others, values, name):
    architecture, networks = model[name]
    assert SingleFile(written / name).architecture == architecture
    assert_equal(values(networks), values(others(written / name, architecture)))


def test_any_architecture_survives(networks, small, others, values, tmp_path):
    single_file.save(tmp_path / "small", small, **networks)
    assert SingleFile(tmp_path / "small").architecture == small
    assert_equal(values(networks), values(others(tmp_path / "small", small)))


def test_the_same_weights_make_the_same_bytes(model, written, tmp_path):
    architecture, networks = model["sd2"]
    single_file.save(tmp_path / "again", architecture, **networks)
    assert (tmp_path / "again").read_bytes() == (written / "sd2").read_bytes()


def test_half_precision(model, others, values, tmp_path):
    architecture, networks = model["sd2"]
    single_file.save(tmp_path / "half", architecture, dtype="float16", **networks)
    assert {tensor.dtype for tensor in safetensors.index(tmp_path / "half").values()} == {"F16"}
    rounded = {
        name: {path: array.astype("float16").astype("float32") for path, array in arrays.items()}
        for name, arrays in values(networks).items()
    }
    assert_equal(rounded, values(others(tmp_path / "half", architecture)))


def test_loads_one_network_alone(model, written, build, values):
    architecture, networks = model["sd2"]
    decoder = build(architecture, ["decoder"])
    SingleFile(written / "sd2").load(**decoder)
    assert_equal(values(decoder), values(networks))


def test_the_scheduler_survives(networks, small, tmp_path):
    config = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.5}
    single_file.save(tmp_path / "file", small, scheduler_config=config, **networks)
    assert SingleFile(tmp_path / "file").scheduler_config == {
        **{"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1},
        **{**config, "prediction_type": "epsilon"},
    }


def test_openclip_stores_queries_keys_and_values_together(model, written):
    tensor = load_file(written / "sd2")["cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight"]
    attention = model["sd2"][1]["text_encoder"].get_layer("encoder_layers_1").self_attn
    parts = [keras.ops.convert_to_numpy(layer.kernel).T for layer in (attention.to_q, attention.to_k, attention.to_v)]
    np.testing.assert_array_equal(tensor, np.concatenate(parts))


# ---- Files of other programs


@pytest.mark.parametrize("name", LIKE)
def test_shapes_tell_the_architecture(model, foreign, others, values, name):
    architecture, networks = model[name]
    path = foreign(name)
    assert SingleFile(path).architecture == architecture
    assert_equal(values(networks), values(others(path, architecture)))


def test_a_tensor_tells_that_the_guidance_is_embedded(foreign):
    name = "model.diffusion_model.time_embedding.cond_proj.weight"
    file = SingleFile(foreign("sd1", lambda tensors: tensors | {name: np.zeros((32, 12), "float32")}))
    assert file.architecture.diffusion_model.guidance_width == 12
    assert file.scheduler_config["_class_name"] == "LCMScheduler"


@pytest.mark.parametrize("name", ["sd14", "sd21_base", "sdxl", "sdxl_refiner", "ssd_1b", "vega", "tiny_sd"])
def test_shapes_tell_the_real_models(full_size, tmp_path, name):
    architecture = ARCHITECTURES[name]
    parts, _ = find_targets(full_size(name), architecture, ldm=True)
    tensors = {
        target.name: Tensor(tmp_path, target.name, "F16", target.shape, 0) for part in parts.values() for target in part
    }
    for key in [key for key in tensors if "resblocks.22." in key]:  # the layer that is there and not used
        tensors[key.replace(".22.", ".23.")] = tensors[key]
    assert replace(ldm.architecture(tensors), name=name) == architecture


def clip_without_prefix(tensors):
    return {key.replace(".text_model.", "."): array for key, array in tensors.items()}


def with_averages(tensors):
    """As full files have them: at twice the values, which must not be loaded."""
    averages = {ldm.averaged(key): 2 * array for key, array in tensors.items() if key.startswith(ldm.UNET)}
    return {**tensors, **averages, "model_ema.decay": np.ones(()), "model_ema.num_updates": np.ones((), "int32")}


def with_leftovers(tensors):
    clip, loss = "cond_stage_model.transformer.text_model.embeddings.position_ids", "first_stage_model.loss.logvar"
    return {**tensors, **BETAS, clip: np.arange(77)[None], loss: np.zeros(())}


def flat_attention(tensors):
    """Matrices where the original has 1×1 convolutions."""
    return {
        key: array[:, :, 0, 0] if ".attn_1." in key and array.ndim == 4 else array for key, array in tensors.items()
    }


OUTSIDE = {  # no part of the model: their values are wrong on purpose
    **dict.fromkeys(("model_ema.other", "embedding_manager.x", "optimizer.state.0", "control.x"), np.full(2, np.nan)),
    "cond_stage_model.transformer.vision_model.x": np.zeros(3, "int8"),
    "cond_stage_model.transformer.logit_scale": np.zeros(()),
    "cond_stage_model.model.visual.proj": np.zeros(3),
    "first_stage_model.discriminator.x": np.zeros(3),
}


def test_tensors_of_no_part_are_named_and_ignored(model, foreign, others, values, caplog):
    architecture, networks = model["sd1"]
    path = foreign("sd1", lambda tensors: {**tensors, **OUTSIDE})
    assert_equal(values(networks), values(others(path, architecture)))
    assert f"holds {len(OUTSIDE)} tensors of no part of the model, ignored: cond_stage_model" in caplog.text
    assert all(name in caplog.text for name in OUTSIDE)


@pytest.mark.parametrize(
    "name",
    [
        "model.diffusion_model.x",
        "first_stage_model.decoder.x",
        "first_stage_model.quant_conv.x",
        "cond_stage_model.transformer.text_model.encoder.x",
        "cond_stage_model.transformer.text_model.embeddings.x",
        "unet.lora_down.weight",
        "cond_stage_model.model.positional_embedding",
    ],
)
def test_an_unknown_tensor_within_a_part_is_an_error(foreign, emptied, name):
    path = foreign("sd1", lambda tensors: {**tensors, name: np.zeros(1, "float32")})
    with pytest.raises(CheckpointMismatchError, match=f"unexpected: single file/{name}"):
        SingleFile(path).load(**emptied(LIKE["sd1"]))


@pytest.mark.parametrize("name", ["sd1", "sd2"])
def test_empty_tensors_say_what_it_predicts_and_its_schedule(foreign, caplog, name):
    empty = {"v_pred": np.zeros(0, "float32"), "ztsnr": np.zeros(0, "float32")}
    read = SingleFile(foreign(name, lambda tensors: {**tensors, **empty}))
    assert read.architecture.prediction_type == "v_prediction"
    assert read.scheduler_config["rescale_betas_zero_snr"] is True
    assert not caplog.records


@pytest.mark.parametrize("change", [clip_without_prefix, with_averages, with_leftovers, flat_attention])
def test_reads_other_forms(model, foreign, others, values, change):
    architecture, networks = model["sd1"]
    path = foreign("sd1", change)
    assert change is flat_attention or load_file(path).keys() != {row.ldm for row in table(architecture)}
    assert_equal(values(networks), values(others(path, architecture)))


def test_takes_moving_averages_where_they_are_asked_for(model, foreign, others, values):
    architecture, networks = model["sd1"]
    expected = values(networks)
    expected["diffusion_model"] = {path: 2 * array for path, array in expected["diffusion_model"].items()}
    assert_equal(expected, values(others(foreign("sd1", with_averages), architecture, ema=True)))


@pytest.mark.parametrize("averages", [0, -1])
def test_refuses_to_take_moving_averages_that_are_not_there(foreign, averages):
    def some(tensors):
        kept = [key for key in with_averages(tensors) if key.startswith("model_ema.diffusion")][:averages]
        return tensors | {key: with_averages(tensors)[key] for key in kept}

    with pytest.raises(CheckpointMismatchError, match="does not hold moving averages") as caught:
        SingleFile(foreign("sd1", some), ema=True)
    assert (len(caught.value.missing) == 1) == (averages == -1)


def test_the_rest_of_openclip_is_known(model, foreign, others, values):
    def complete(tensors):
        clip = "cond_stage_model.model."
        names = [key for key in tensors if ".resblocks.2." in key]
        last = {key.replace(".resblocks.2.", ".resblocks.23."): tensors[key] for key in names}
        return {**tensors, **last, f"{clip}text_projection": np.eye(3), f"{clip}logit_scale": np.ones(())}

    architecture, networks = model["sd2"]
    assert_equal(values(networks), values(others(foreign("sd2", complete), architecture)))


@pytest.mark.parametrize("legacy", [False, True])
def test_reads_pickles(model, written, others, values, tmp_path, legacy):
    """As Lightning writes them, whatever they are called."""
    torch = pytest.importorskip("torch")
    for name, (architecture, networks) in model.items():
        tensors = {key: torch.from_numpy(array) for key, array in load_file(written / name).items()}
        content = {"epoch": 5, "global_step": 470000, "state_dict": tensors, "lr_schedulers": []}
        torch.save(content, tmp_path / "x.safetensors", _use_new_zipfile_serialization=not legacy)
        assert SingleFile(tmp_path / "x.safetensors").architecture == architecture
        assert_equal(values(networks), values(others(tmp_path / "x.safetensors", architecture)))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_of_others(model, foreign, others, values, dtype):
    import ml_dtypes

    stored = getattr(ml_dtypes, dtype, np.float16)
    path = foreign("sd1", lambda tensors: {key: array.astype(stored) for key, array in tensors.items()})
    found, expected = values(others(path, LIKE["sd1"])), values(model["sd1"][1])
    for name, arrays in expected.items():
        for key, array in arrays.items():
            np.testing.assert_array_equal(found[name][key], array.astype(stored).astype("float32"))


# ---- Epsilon or v


def four_channels(deviation=None):
    """Makes an SD 2 file of the inpainting one; `deviation` gives it the bias that tells v from epsilon."""

    def change(tensors):
        tensors[f"{ldm.UNET}input_blocks.0.0.weight"] = tensors[f"{ldm.UNET}input_blocks.0.0.weight"][:, :4]
        if deviation:
            tensors[ldm.EPSILON_OR_VELOCITY] = np.float32([-deviation, deviation])
        return tensors

    return change


@pytest.mark.parametrize(
    ("name", "change", "metadata", "asked", "expected", "size", "warns"),
    [
        ("sd1", dict, None, None, "epsilon", 512, False),
        ("sd1", dict, None, "v_prediction", "v_prediction", 512, False),
        ("sd2", dict, None, None, "epsilon", 512, False),  # inpainting
        ("sd2", four_channels(), None, None, "epsilon", 512, True),
        ("sd2", four_channels(0.08), None, None, "epsilon", 512, True),
        ("sd2", four_channels(0.10), None, None, "v_prediction", 768, True),
        ("sd2", four_channels(0.10), None, "epsilon", "epsilon", 512, False),
        ("sd2", four_channels(), {"modelspec.prediction_type": "v"}, None, "v_prediction", 768, False),
        ("sd2", four_channels(0.10), {"modelspec.prediction_type": "epsilon"}, None, "epsilon", 512, False),
        ("sd2", four_channels(), {"modelspec.prediction_type": "v"}, "epsilon", "epsilon", 512, False),
    ],
)
def test_what_it_predicts(foreign, caplog, name, change, metadata, asked, expected, size, warns):
    with caplog.at_level(logging.WARNING, "keras_diffusion"):
        read = SingleFile(foreign(name, change, metadata), prediction_type=asked)
    assert read.architecture.prediction_type == read.scheduler_config["prediction_type"] == expected
    assert read.architecture.image_size == size
    assert ["pass prediction_type=" in record.getMessage() for record in caplog.records] == [True] * warns


def test_the_argument_has_the_last_word(written, saved):
    for read in (SingleFile(written / "sd1", "sample"), DiffusersFolder(saved, "sample")):
        assert read.architecture.prediction_type == read.scheduler_config["prediction_type"] == "sample"
    with pytest.raises(CheckpointMismatchError, match="prediction_type='x'"):
        SingleFile(written / "sd1", "x")


# ---- What is refused


@pytest.mark.parametrize(
    ("names", "family"),
    [
        (["model.diffusion_model.label_emb.0.0.weight", "conditioner.embedders.0.model.ln_final.weight"], "SDXL"),
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["model.diffusion_model.joint_blocks.0.x_block.mlp.fc1.weight"], "Stable Diffusion 3"),
        (["control_model.time_embed.0.weight"], "a ControlNet"),
        (["encoder.conv_in.weight", "quant_conv.weight"], "a vae"),
        (["conv_in.weight", "time_embedding.linear_1.weight"], "a unet"),
        (["model.diffusion_model.input_blocks.0.0.weight"], "a single file in the original (LDM) layout"),
        (["x"], "nothing known"),
        ([], "nothing known"),
    ],
)
def test_names_what_is_no_whole_model(tmp_path, names, family):
    save_file({name: np.zeros((2, 2), "float32") for name in names}, tmp_path / "file.safetensors")
    with pytest.raises(CheckpointMismatchError, match="no whole model") as caught:
        SingleFile(tmp_path / "file.safetensors")
    assert f"looks like {family}" in str(caught.value)
    assert not names or str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
        "cond_stage_model.transformer.text_model.embeddings.position_embedding.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "model.diffusion_model.input_blocks.1.0.in_layers.2.weight",
        "model.diffusion_model.out.2.weight",
        "first_stage_model.encoder.down.0.block.0.conv1.weight",
        "first_stage_model.post_quant_conv.weight",
    ],
)
@pytest.mark.parametrize("change", ["absent", "scalar"])
def test_names_what_it_takes_to_tell_the_architecture(foreign, name, change):
    def damaged(tensors):
        tensors.pop(name)
        return tensors if change == "absent" else {**tensors, name: np.zeros((), "float32")}

    with pytest.raises(CheckpointMismatchError) as caught:
        SingleFile(foreign("sd1", damaged))
    assert caught.value.missing == [name]


def test_names_everything_that_does_not_fit(foreign, emptied, values):
    def damaged(tensors):
        tensors.pop("first_stage_model.quant_conv.bias")
        tensors.pop("cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias")
        tensors["model.diffusion_model.label_emb.weight"] = np.zeros((1000, 4), "float32")
        tensors["model.diffusion_model.out.2.bias"] = np.zeros(3, "float32")
        return tensors

    networks = emptied(LIKE["sd2"])
    with pytest.raises(CheckpointMismatchError) as caught:
        SingleFile(foreign("sd2", damaged)).load(**networks)
    assert caught.value.missing == [
        *(f"single file/cond_stage_model.model.transformer.resblocks.0.attn.in_proj_bias[{i}]" for i in range(3)),
        "single file/first_stage_model.quant_conv.bias",
    ]
    assert caught.value.unexpected == ["single file/model.diffusion_model.label_emb.weight"]
    assert caught.value.mismatched == ["single file/model.diffusion_model.out.2.bias: shape (3,), not (4,)"]
    assert "looks like" not in str(caught.value)
    for arrays in values(networks).values():
        for path, array in arrays.items():
            assert (array == path.endswith("gamma")).all()


def test_refuses_a_tensor_under_two_names(foreign, emptied):
    name = "cond_stage_model.transformer.text_model.final_layer_norm.bias"
    path = foreign("sd1", lambda tensors: {**tensors, name.replace(".text_model.", "."): tensors[name]})
    with pytest.raises(CheckpointMismatchError) as caught:
        SingleFile(path).load(**emptied(LIKE["sd1"]))
    assert caught.value.unexpected == [f"single file/{name.replace('.text_model.', '.')}"]


def test_refuses_groups_that_do_not_divide(networks, small, tmp_path):
    single_file.save(tmp_path / "small", small, **networks)
    save_file(load_file(tmp_path / "small"), tmp_path / "foreign")
    with pytest.raises(CheckpointMismatchError, match="norm_num_groups=32, which does not divide"):
        SingleFile(tmp_path / "foreign")


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "{}", '{"unet": 3}', "null"])
def test_refuses_damaged_metadata(foreign, text):
    with pytest.raises(CorruptCheckpointError, match="metadata"):
        SingleFile(foreign("sd1", metadata={single_file.OURS: text}))


def test_metadata_is_as_strict_as_a_folder(foreign, written):
    configs = json.loads(safetensors.metadata(written / "sd1")[single_file.OURS])
    configs["unet"]["class_embed_type"] = "timestep"
    with pytest.raises(CheckpointMismatchError, match="class_embed_type"):
        SingleFile(foreign("sd1", metadata={single_file.OURS: json.dumps(configs)}))


def test_refuses_damaged_files(tmp_path, written):
    (tmp_path / "short").write_bytes((written / "sd1").read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        SingleFile(tmp_path / "short")
    with pytest.raises(FileNotFoundError, match="no such file"):
        SingleFile(tmp_path / "absent")


# ---- Writing


def test_writes_all_or_nothing(networks, small, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        write(*arguments, **options)
        raise KeyboardInterrupt

    write = single_file.write_weights
    monkeypatch.setattr(single_file, "write_weights", fail)
    with pytest.raises(KeyboardInterrupt):
        single_file.save(tmp_path / "file", small, **networks)
    assert list(tmp_path.iterdir()) == []


def test_never_replaces_a_file(networks, small, tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(FileExistsError, match="Received: path="):
            single_file.save(path, small, **networks)
    assert (tmp_path / "file").read_text() == "precious"


def test_refuses_wrong_arguments(networks, small, tmp_path):
    with pytest.raises(ValueError, match="Received: dtype='int8'"):
        single_file.save(tmp_path / "a", small, dtype="int8", **networks)
    with pytest.raises(TypeError, match="decoder"):
        single_file.save(tmp_path / "a", small, **{name: networks[name] for name in networks if name != "decoder"})
    with pytest.raises(ValueError, match="`text_encoder` must be of the architecture given"):
        single_file.save(tmp_path / "a", LIKE["sd1"], **networks)


# ---- Diffusers


@pytest.fixture
def diffusers_folder(model, tmp_path):
    """Writes the model as a diffusers folder, which diffusers needs for its configuration."""
    from keras_diffusion.checkpoints.layouts.diffusers_folder import save

    def diffusers_folder(name):
        architecture, networks = model[name]
        save(tmp_path / "folder", architecture, **networks)
        return tmp_path / "folder"

    return diffusers_folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LIKE)
def test_diffusers_reads_what_is_written_here(written, diffusers_folder, tmp_path, name):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    path = (tmp_path / name).with_suffix(".safetensors")
    path.write_bytes((written / name).read_bytes())
    kinds = {"sdxl": "StableDiffusionXLPipeline", "sdxl_refiner": "StableDiffusionXLImg2ImgPipeline"}
    pipeline = getattr(diffusers, kinds.get(name, "StableDiffusionPipeline"))
    options = {} if name in kinds else {"safety_checker": None}
    expected = pipeline.from_pretrained(diffusers_folder(name), **options)
    found = pipeline.from_single_file(path, config=str(tmp_path / "folder"), local_files_only=True, **options)
    for part in folders(LIKE[name]):
        ours, theirs = getattr(expected, part).state_dict(), getattr(found, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), part


def test_every_name_is_written_once(written):
    for name, architecture in LIKE.items():
        names = {row.ldm.partition("[")[0] for row in table(architecture)}
        assert safetensors.index(written / name).keys() == names
