"""A folder written and read: what is exact, and what is refused."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keras_diffusion.checkpoints.formats.safetensors import index
from keras_diffusion.checkpoints.layouts import diffusers_folder
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder, usual_padding
from keras_diffusion.checkpoints.layouts.files import new_folder
from keras_diffusion.checkpoints.layouts.saving import write_weights
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError, UnsafeCheckpointError
from keras_diffusion.sampling.scheduler_config import from_scheduler_config

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def rewrite(path, change):
    """Changes the tensors of a file, a dict from names to arrays."""
    save_file({name: np.ascontiguousarray(array) for name, array in change(load_file(path)).items()}, path)


def rewrite_json(path, change):
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].keys() == other[name].keys()
        for path in one[name]:
            np.testing.assert_array_equal(one[name][path], other[name][path], strict=True)


@pytest.fixture(scope="module")
def blank(small, build):
    """The networks of `small` that are filled and emptied again."""
    return build(small)


@pytest.fixture
def others(blank):
    for network in blank.values():
        for variable in network.variables:
            variable.assign(np.full(tuple(variable.shape), 7.0))
    return blank


@pytest.fixture
def untouched(others, values):
    """Checks afterwards that nothing was loaded into the others."""
    yield others
    assert all((array == 7).all() for arrays in values(others).values() for array in arrays.values())


# ---- What is exact


@pytest.mark.backend
def test_round_trip_is_exact(saved, networks, others, values, small):
    read = DiffusersFolder(saved)
    read.load(**others)
    assert read.architecture == small
    assert_equal(values(others), values(networks))


@pytest.mark.parametrize("name", ["text_encoder", "diffusion_model", "image_encoder", "decoder"])
def test_loads_one_network_alone(saved, networks, others, values, name):
    DiffusersFolder(saved).load(**{name: others[name]})
    assert_equal(values({name: others[name]}), values({name: networks[name]}))
    rest = values({other: network for other, network in others.items() if other != name})
    assert all((array == 7).all() for arrays in rest.values() for array in arrays.values())


@pytest.mark.backend
def test_loads_networks_built_without_values(saved, networks, build, values, small):
    with keras.StatelessScope(initialize_variables=False):
        others = build(small)
    DiffusersFolder(saved).load(**others)
    assert_equal(values(others), values(networks))


def test_the_same_weights_make_the_same_bytes(saved, networks, small, tmp_path):
    diffusers_folder.save(tmp_path / "again", small, **networks)
    assert files(tmp_path / "again") == files(saved)


def test_half_precision(networks, small, others, values, tmp_path):
    diffusers_folder.save(tmp_path / "half", small, dtype="float16", **networks)
    assert {tensor.dtype for tensor in index(tmp_path / "half" / UNET).values()} == {"F16"}
    DiffusersFolder(tmp_path / "half").load(**others)
    rounded = {
        name: {path: array.astype("float16").astype("float32") for path, array in arrays.items()}
        for name, arrays in values(networks).items()
    }
    assert_equal(values(others), rounded)


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_loads_into_half_precision(saved, networks, build, values, small, dtype):
    half = build(small, ["diffusion_model"], dtype=dtype)
    DiffusersFolder(saved).load(**half)
    expected = values(networks)["diffusion_model"]
    for path, array in values(half)["diffusion_model"].items():
        assert str(array.dtype) == dtype
        np.testing.assert_allclose(array.astype("float32"), expected[path], rtol=2.0**-8)


def test_scheduler_config(saved, networks, small, tmp_path):
    assert DiffusersFolder(saved).scheduler_config["_class_name"] == "DDIMScheduler"
    config = {"_class_name": "EulerDiscreteScheduler", "beta_end": 0.5, "prediction_type": "sample"}
    diffusers_folder.save(tmp_path / "other", small, scheduler_config=config, **networks)
    read = DiffusersFolder(tmp_path / "other")
    said = {"prediction_type": "epsilon", "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
    assert read.scheduler_config == {**config, **said}
    assert json.loads((tmp_path / "other/model_index.json").read_text())["scheduler"][1] == "EulerDiscreteScheduler"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_text_encoder_says_that_it_computes_in_float32(networks, small, tmp_path, dtype):
    diffusers_folder.save(tmp_path / "model", small, dtype=dtype, **networks)
    assert json.loads((tmp_path / "model/text_encoder/config.json").read_text())["dtype"] == "float32"


@pytest.mark.parametrize(
    ("scheduler", "to_one"),
    [
        ({"_class_name": "EulerDiscreteScheduler"}, False),
        ({"_class_name": "PNDMScheduler", "skip_prk_steps": True}, False),
        ({"_class_name": "DDIMScheduler"}, True),  # as the class has it where the file says nothing
        ({"_class_name": "DDIMScheduler", "set_alpha_to_one": False, "clip_sample": True, "steps_offset": 0}, False),
    ],
)
def test_the_scheduler_says_what_is_drawn_here(networks, small, tmp_path, scheduler, to_one):
    diffusers_folder.save(tmp_path / "model", small, scheduler_config=scheduler, **networks)
    written = DiffusersFolder(tmp_path / "model").scheduler_config
    assert (written["clip_sample"], written["steps_offset"], written["set_alpha_to_one"]) == (False, 1, to_one)
    before, after = from_scheduler_config(scheduler), from_scheduler_config(written)
    assert before[0] == after[0]
    assert before[1].get("ends_clean") in (None, after[1].get("ends_clean"))


# ---- Other forms of the same


def without_prefix(tensors):
    return {name.removeprefix("text_model."): array for name, array in tensors.items()}


def with_position_ids(tensors):
    return {**tensors, "text_model.embeddings.position_ids": np.arange(77)[None]}


def with_the_rest_of_clip(tensors):
    more = ("text_projection.weight", "logit_scale", "vision_model.x", "visual_projection.weight")
    return {**tensors, **dict.fromkeys(more, np.full((8, 8), np.nan))}


def with_a_loss(tensors):
    return {**tensors, "loss.logvar": np.zeros(()), "model_ema.decay": np.zeros(())}


@pytest.mark.parametrize(("path", "change"), [(TEXT_ENCODER, with_the_rest_of_clip), (VAE, with_a_loss)])
def test_tensors_of_no_part_are_named_and_ignored(copy, networks, others, values, caplog, path, change):
    rewrite(copy / path, change)
    DiffusersFolder(copy).load(**others)
    assert_equal(values(others), values(networks))
    assert all(name in caplog.text for name in change({}))


def old_attention(tensors):
    """As diffusers named the VAE's attention until 2023, and as the original stores it: 1×1 convolutions."""
    names = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    renamed = {}
    for name, array in tensors.items():
        for new, old in names.items():
            name = name.replace(new, old)
        renamed[name] = array[:, :, None, None] if "attentions" in name and array.ndim == 2 else array
    assert len(renamed.keys() - tensors.keys()) == 16
    return renamed


@pytest.mark.parametrize(
    ("path", "change"), [(TEXT_ENCODER, without_prefix), (TEXT_ENCODER, with_position_ids), (VAE, old_attention)]
)
def test_reads_other_names(copy, networks, others, values, path, change):
    rewrite(copy / path, change)
    DiffusersFolder(copy).load(**others)
    assert_equal(values(others), values(networks))


def test_reads_a_half_precision_variant(copy, networks, others, values):
    (copy / UNET).rename((copy / UNET).with_suffix(".fp16.safetensors"))
    DiffusersFolder(copy).load(**others)
    assert_equal(values(others), values(networks))


def split(path, variant="", name="diffusion_pytorch_model-0000{}-of-00002.safetensors"):
    """Replaces a file by two and their index."""
    tensors = load_file(path)
    weight_map = {}
    for number in (1, 2):
        part = dict(list(tensors.items())[number - 1 :: 2])
        save_file(part, path.with_name(name.format(number)))
        weight_map |= dict.fromkeys(part, name.format(number))
    path.unlink()
    index = path.with_name(f"{path.name}.index{variant}.json")
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_reads_several_files(copy, networks, others, values, variant):
    split(copy / UNET, variant)
    DiffusersFolder(copy).load(**others)
    assert_equal(values(others), values(networks))


def pickled(path, target):
    """Writes the tensors of a file as a pickle."""
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in load_file(path).items()}, target)


@pytest.mark.parametrize("parts", [1, 2])
def test_reads_pickles_where_there_is_nothing_else(copy, networks, others, values, parts):
    unet, vae, text_encoder = (copy / path for path in (UNET, VAE, TEXT_ENCODER))
    pickled(text_encoder, copy / "text_encoder/pytorch_model.bin")
    text_encoder.unlink()
    if parts == 1:
        pickled(unet, copy / "unet/diffusion_pytorch_model.fp16.bin")
    else:
        split(unet)
        weight_map = {}
        for shard in (copy / "unet").glob("*.safetensors"):
            pickled(shard, shard.with_suffix(".bin"))
            weight_map |= dict.fromkeys(load_file(shard), shard.with_suffix(".bin").name)
            shard.unlink()
        index = copy / "unet/diffusion_pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": weight_map}))
        (copy / "unet/diffusion_pytorch_model.safetensors.index.json").unlink()
    unet.unlink(missing_ok=True)
    pickled(vae, vae.with_suffix(".bin"))  # beside safetensors, which are taken
    rewrite(vae, lambda tensors: {**tensors, "quant_conv.bias": np.full(8, 3, "float32")})
    DiffusersFolder(copy).load(**others)
    found, expected = values(others), values(networks)
    expected["image_encoder"]["quant_conv/bias"][:] = 3
    assert_equal(found, expected)


# ---- What is refused


@pytest.mark.parametrize(
    "name",
    [
        "../diffusion_pytorch_model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..\\model.safetensors",
        "C:\\model.safetensors",
        "C:model.safetensors",
        "\\\\host\\share\\model.safetensors",
        "model.safetensors\0",
        "model.bin",
        ".hidden.safetensors",
        "",
        7,
        ["model.safetensors"],
    ],
)
def test_an_index_lists_names_and_not_paths(copy, untouched, name):
    index = split(copy / UNET)
    rewrite_json(index, lambda content: {"weight_map": {**content["weight_map"], "conv_in.bias": name}})
    with pytest.raises(UnsafeCheckpointError):
        DiffusersFolder(copy).load(**untouched)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: {"weight_map": {"conv_in.bias": "absent.safetensors"}}, "missing"),
        (lambda content: {"weight_map": []}, "weight_map"),
        (lambda content: {}, "weight_map"),
    ],
)
def test_an_index_must_be_sound(copy, untouched, change, reason):
    rewrite_json(split(copy / UNET), change)
    with pytest.raises(CorruptCheckpointError, match=reason):
        DiffusersFolder(copy).load(**untouched)


def test_refuses_a_tensor_in_two_files(copy, untouched):
    index = split(copy / UNET)
    first, second = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    name, array = next(iter(load_file(copy / "unet" / first).items()))
    rewrite(copy / "unet" / second, lambda tensors: {**tensors, name: array})
    with pytest.raises(CorruptCheckpointError, match="repeats"):
        DiffusersFolder(copy).load(**untouched)


def test_refuses_a_tensor_under_two_names(copy, untouched):
    name = "final_layer_norm.bias"
    rewrite(copy / TEXT_ENCODER, lambda tensors: {**tensors, name: tensors[f"text_model.{name}"]})
    with pytest.raises(CheckpointMismatchError) as caught:
        DiffusersFolder(copy).load(**untouched)
    assert caught.value.unexpected == [f"text_encoder/text_model.{name}"]


def test_one_error_names_what_is_wrong_in_every_part(copy, untouched):
    rewrite(copy / TEXT_ENCODER, lambda tensors: {**tensors, "lora_te.weight": np.zeros(1, "float32")})
    rewrite(copy / UNET, lambda tensors: {name: tensors[name] for name in tensors if name != "conv_in.bias"})
    rewrite(copy / VAE, lambda tensors: {**tensors, "decoder.conv_in.bias": np.zeros(5, "float32")})
    with pytest.raises(CheckpointMismatchError, match="text_encoder looks like a LoRA") as caught:
        DiffusersFolder(copy).load(**untouched)
    assert caught.value.missing == ["unet/conv_in.bias"]
    assert caught.value.unexpected == ["text_encoder/lora_te.weight"]
    assert caught.value.mismatched == ["vae/decoder.conv_in.bias: shape (5,), not (16,)"]


def test_the_last_bad_number_keeps_everything_from_being_assigned(copy, untouched):
    rewrite(copy / VAE, lambda tensors: {**tensors, "quant_conv.bias": np.full(8, np.nan, "float32")})
    with pytest.raises(CheckpointMismatchError) as caught:
        DiffusersFolder(copy).load(**untouched)
    assert caught.value.mismatched == ["vae/quant_conv.bias: holds nan"]


@pytest.mark.parametrize(
    ("field", "shape"),
    [
        ("text_encoder", {"heads": 4}),
        ("text_encoder", {"activation": "gelu"}),
        ("autoencoder", {"scaling_factor": 1.0}),
        ("autoencoder", {"groups": 8}),
        ("diffusion_model", {"groups": 8}),
    ],
)
def test_refuses_a_network_that_would_compute_something_else(saved, small, build, field, shape):
    other = replace(small, **{field: replace(getattr(small, field), **shape)})
    name = "decoder" if field == "autoencoder" else field
    with pytest.raises(CheckpointMismatchError) as caught:
        DiffusersFolder(saved).load(**build(other, [name]))
    ((option, value),) = shape.items()
    assert f"{name}: built with {option}={value}" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "text_encoder/config.json",
        "unet/config.json",
        "vae/config.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_a_folder_must_be_complete(copy, name):
    (copy / name).unlink()
    with pytest.raises(CorruptCheckpointError, match=f"{name} is missing"):
        DiffusersFolder(copy)


def test_the_tokenizer_says_the_pad_token(copy, small, caplog):
    tokenizer = copy / "tokenizer"
    rewrite_json(tokenizer / "special_tokens_map.json", lambda tokens: {**tokens, "pad_token": "!"})
    assert DiffusersFolder(copy).architecture.text_encoder == replace(small.text_encoder, pad_token=0)
    (tokenizer / "special_tokens_map.json").unlink()
    assert DiffusersFolder(copy).architecture == small
    (tokenizer / "tokenizer_config.json").unlink()
    assert DiffusersFolder(copy).architecture == small  # as Stable Diffusion 1, whose text encoder is narrow
    assert "special_tokens_map.json or tokenizer/tokenizer_config.json; {'pad_token': '<|endoftext|>'}" in caplog.text
    assert usual_padding("tokenizer_2", {"text_encoder_2": {"hidden_size": 1024}}) == {"pad_token": "!"}


@pytest.mark.parametrize(
    "content", [b"", b"<html>", b"[1]", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 10_000, b"null"]
)
def test_refuses_what_is_not_json(copy, content):
    (copy / "unet/config.json").write_bytes(content)
    with pytest.raises(CorruptCheckpointError, match=r"unet.config\.json"):
        DiffusersFolder(copy)


@pytest.mark.parametrize("path", [TEXT_ENCODER, UNET, VAE])
def test_weights_must_be_there(copy, untouched, path):
    (copy / path).rename((copy / path).with_suffix(".other"))
    with pytest.raises(CorruptCheckpointError, match=f"The weights {path} are missing"):
        DiffusersFolder(copy).load(**untouched)


@pytest.mark.parametrize("pickle", [False, True])
def test_refuses_damaged_weights(copy, untouched, pickle):
    """Also where there is a pickle beside them."""
    if pickle:
        pickled(copy / VAE, copy / "vae/diffusion_pytorch_model.bin")
    (copy / VAE).write_bytes((copy / VAE).read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="damaged"):
        DiffusersFolder(copy).load(**untouched)


def test_refuses_another_name_for_a_network(saved, untouched):
    with pytest.raises(TypeError, match=r"Received: \['unet'\]"):
        DiffusersFolder(saved).load(unet=untouched["diffusion_model"])


# ---- Writing


def test_writes_all_or_nothing(networks, small, tmp_path, monkeypatch):
    def fail(*arguments):
        write_weights(*arguments)
        if "vae" in str(arguments[0]):
            raise KeyboardInterrupt

    monkeypatch.setattr(diffusers_folder, "write_weights", fail)
    with pytest.raises(KeyboardInterrupt):
        diffusers_folder.save(tmp_path / "model", small, **networks)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "dtype"),
    [(np.nan, "float32"), (70000.0, "float16"), (-np.inf, "float16"), (np.nan, "bfloat16"), (-3.3999e38, "bfloat16")],
)
def test_writes_only_numbers_that_fit(others, small, tmp_path, number, dtype):
    others["decoder"].get_layer("conv_out").bias.assign([0.0, number, 0.0])
    with pytest.raises(ValueError, match=rf"finite in {dtype}\. Received: decoder\.conv_out\.bias"):
        diffusers_folder.save(tmp_path / "model", small, dtype=dtype, **others)
    assert list(tmp_path.iterdir()) == []


def test_never_replaces_a_folder(saved, networks, small, tmp_path):
    (tmp_path / "file").write_text("precious")
    for path in (tmp_path, tmp_path / "file", saved):
        before = files(path)
        with pytest.raises(FileExistsError, match="Received: path="):
            diffusers_folder.save(path, small, **networks)
        assert files(path) == before


def test_fills_an_empty_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as path:
        (path / "file").touch()
    assert [file.name for file in tmp_path.rglob("*")] == ["empty", "file"]


def test_refuses_wrong_arguments(networks, small, tmp_path):
    with pytest.raises(ValueError, match="Received: dtype='int8'"):
        diffusers_folder.save(tmp_path / "a", small, dtype="int8", **networks)
    other = replace(small, diffusion_model=replace(small.diffusion_model, groups=2))
    with pytest.raises(ValueError, match="`diffusion_model` must be of the architecture given"):
        diffusers_folder.save(tmp_path / "a", other, **networks)
    with pytest.raises(ValueError, match="diffusers cannot describe"):
        diffusers_folder.save(tmp_path / "a", replace(small, image_size=17), **networks)
    with pytest.raises(TypeError, match="decoder"):
        diffusers_folder.save(tmp_path / "a", small, **{name: networks[name] for name in networks if name != "decoder"})
