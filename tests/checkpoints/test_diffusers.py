"""Folders that diffusers writes are read here, and those written here by diffusers; both compute the same."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from keras_diffusion.architectures import (
    Architecture,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.layouts import diffusers_folder
from keras_diffusion.checkpoints.layouts.diffusers_configs import to_diffusers
from keras_diffusion.checkpoints.layouts.diffusers_folder import DiffusersFolder
from keras_diffusion.checkpoints.layouts.files import TOKENIZERS
from keras_diffusion.checkpoints.layouts.tokenizer_files import read_tokenizer
from keras_diffusion.checkpoints.mapping.names import folders
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

from ..golden.networks import fill

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore")

TOLERANCE = 1e-5
TINY_SDXL = Architecture(
    "custom",
    TextEncoderShape(width=16, layers=2, heads=2, penultimate=True),
    DiffusionModelShape(
        levels=(Level(16, 2, 0), Level(32, 2, 2)),
        middle=(2, 0),
        context=16 + 24,
        groups=8,
        linear_projection=True,
        added=12 + 6 * 8,
        id_width=8,
    ),
    AutoencoderShape(channels=(8, 16), blocks=1, groups=4, scaling_factor=0.13025),
    image_size=16,
    text_encoder_2=TextEncoderShape(
        width=24, layers=3, heads=3, activation="gelu", pad_token=0, penultimate=True, projection=12
    ),
    zero_negative=True,
)
LIKE = {  # small models with the options of the real ones
    "sd1": Architecture(
        "custom",
        TextEncoderShape(width=16, layers=2, heads=2, vocabulary=49408),
        DiffusionModelShape(levels=(Level(16, 2, 1), Level(32, 2, 1), Level(32, 2, 0)), context=16, groups=8),
        AutoencoderShape(channels=(8, 16, 16), groups=4),
        image_size=32,
    ),
    "sd2": Architecture(
        "custom",
        TextEncoderShape(width=24, layers=3, heads=3, activation="gelu", pad_token=0),
        DiffusionModelShape(
            levels=(Level(16, 2, 1), Level(32, 4, 0)), blocks=1, context=24, groups=8, linear_projection=True
        ),
        AutoencoderShape(channels=(8, 16), groups=4),
        prediction_type="v_prediction",
        image_size=16,
    ),
    "emoji": Architecture(
        "custom",
        TextEncoderShape(width=16, layers=2, heads=4),
        DiffusionModelShape(levels=(Level(32, 4, 0), Level(64, 4, 1), Level(64, 4, 1)), blocks=1, context=16),
        AutoencoderShape(channels=(8, 16, 32), blocks=1, groups=8, scaling_factor=1.0),
        prediction_type="v_prediction",
        image_size=32,
    ),
    "tiny_sd": Architecture(
        "custom",
        TextEncoderShape(width=16, layers=2, heads=2),
        DiffusionModelShape(levels=(Level(16, 2, 1), Level(32, 2, 1)), blocks=1, context=16, groups=8, middle=()),
        AutoencoderShape(channels=(8, 16), blocks=1, groups=4),
        image_size=16,
    ),
    "sdxl": TINY_SDXL,
    "sdxl_refiner": replace(
        TINY_SDXL,
        text_encoder=None,
        diffusion_model=replace(
            TINY_SDXL.diffusion_model,
            levels=(Level(16, 2, 0), Level(32, 2, 1), Level(32, 2, 1), Level(32, 2, 0)),
            middle=(1, 0),
            context=24,
            added=12 + 5 * 8,
        ),
        zero_negative=False,
    ),
    "ssd_1b": replace(
        TINY_SDXL,
        diffusion_model=replace(
            TINY_SDXL.diffusion_model,
            levels=(Level(16, 2, 0), Level(32, 2, 2, (2, 1, 1)), Level(32, 2, (1, 2), (1, 1, 2))),
            middle=(0,),
        ),
    ),
}


@pytest.fixture(scope="module", params=LIKE)
def architecture(request):
    return LIKE[request.param]


@pytest.fixture(scope="module")
def pipeline(architecture, tmp_path_factory):
    """A diffusers pipeline with random weights."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    configs, tokenizers = to_diffusers(architecture), {}
    networks = {
        "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
        "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
    }
    for name, shape in architecture.text_encoders.items():
        path, tokenizer = tmp_path_factory.mktemp(name), TOKENIZERS[name]
        diffusers_folder.write_tokenizer(path, configs[tokenizer], shape.length, shape.vocabulary)
        tokenizers[tokenizer] = transformers.CLIPTokenizer.from_pretrained(path)
        [kind] = configs[name]["architectures"]
        networks[name] = getattr(transformers, kind)(transformers.CLIPTextConfig(**configs[name]))
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.eval().parameters():
                parameter += 0.05 * torch.randn_like(parameter)  # no norm stays one, no bias zero
    scheduler = getattr(diffusers, configs["scheduler"]["_class_name"]).from_config(configs["scheduler"])
    parts = dict.fromkeys(part for part, names in configs["model_index"].items() if isinstance(names, list))
    options = {name: value for name, value in configs["model_index"].items() if isinstance(value, bool)}
    parts |= {**networks, **tokenizers, "scheduler": scheduler}
    return getattr(diffusers, configs["model_index"]["_class_name"])(**parts, **options)


@pytest.fixture(scope="module")
def networks(pipeline, architecture, build, tmp_path_factory):
    """The networks here, with the weights of the folder that diffusers wrote."""
    path = tmp_path_factory.mktemp("pipeline")
    pipeline.save_pretrained(path)
    found = DiffusersFolder(path)
    assert found.architecture == architecture
    networks = build(architecture)
    found.load(**networks)
    return networks


@pytest.fixture(scope="module")
def inputs(architecture):
    random = np.random.default_rng(0)
    unet, size = architecture.diffusion_model, architecture.image_size // architecture.autoencoder.factor
    return {
        **{
            name: SimpleTokenizer().tokenize("a slice of pizza", pad_token=shape.pad_token)
            for name, shape in architecture.text_encoders.items()
        },
        "added": [random.normal(size=(2, x)).astype("float32") for x in sizes_of_added(architecture)],
        "latents": random.normal(size=(2, size, size, 4)).astype("float32"),
        "timesteps": np.array([981, 7]),
        "context": random.normal(size=(2, 77, unet.context)).astype("float32"),
        "images": random.uniform(-1, 1, (2, 16, 24, 3)).astype("float32"),
    }


def sizes_of_added(architecture):
    """How long the pooled vector and the size ids are, if there are any."""
    shape, second = architecture.diffusion_model, architecture.text_encoder_2
    return [second.projection, (shape.added - second.projection) // shape.id_width] if second else []


def ours(networks, architecture, inputs):
    """What the networks here compute, by network."""
    shape, added = architecture.diffusion_model, inputs["added"]
    if added:
        added = [np.concatenate([added[0], *(timestep_embedding(ids, shape.id_width) for ids in added[1].T)], axis=-1)]
    frequencies = timestep_embedding(inputs["timesteps"], shape.frequencies)
    outputs = {
        **{name: networks[name]([inputs[name], np.arange(77)[None]]) for name in architecture.text_encoders},
        "diffusion_model": networks["diffusion_model"]([inputs["latents"], frequencies, inputs["context"], *added]),
        "image_encoder": networks["image_encoder"](inputs["images"]),
        "decoder": networks["decoder"](inputs["latents"]),
    }
    return {name: joined(map(keras.ops.convert_to_numpy, keras.tree.flatten(out))) for name, out in outputs.items()}


def joined(outputs):
    """The numbers of a network's only output, or of its context and its pooled vector."""
    outputs = list(outputs)
    return (
        np.concatenate([output.reshape(len(output), -1) for output in outputs], axis=1) if outputs[1:] else outputs[0]
    )


def theirs(pipeline, architecture, inputs):
    """What diffusers and transformers compute, by our names."""

    def first(array):
        return torch.from_numpy(np.moveaxis(array, -1, 1).copy())

    latents, context = first(inputs["latents"]), torch.from_numpy(inputs["context"])
    scale = architecture.autoencoder.scaling_factor
    added = dict(zip(("text_embeds", "time_ids"), map(torch.from_numpy, inputs["added"]), strict=False))
    with torch.no_grad():
        timesteps = torch.from_numpy(inputs["timesteps"])
        outputs = {
            "diffusion_model": pipeline.unet(latents, timesteps, context, added_cond_kwargs=added).sample,
            "image_encoder": pipeline.vae.encode(first(inputs["images"])).latent_dist.mean * scale,
            "decoder": pipeline.vae.decode(latents / scale).sample,
        }
        contexts = {}
        for name, shape in architecture.text_encoders.items():
            found = getattr(pipeline, name)(torch.from_numpy(inputs[name].astype("int64")), output_hidden_states=True)
            outs = (found.hidden_states[-2], found[0] if shape.projection else found.pooler_output)
            contexts[name] = joined(x.numpy() for x in (outs if shape.penultimate else (found.last_hidden_state,)))
    return {**contexts, **{name: np.moveaxis(x.numpy(), 1, -1) for name, x in outputs.items()}}


def errors(one, other):
    """The largest difference, by network, in units of the output's standard deviation where that is above 1."""
    return {name: np.abs(one[name] - other[name]).max() / max(1, other[name].std()) for name in other}


@pytest.mark.backend("sdxl", "tiny_sd")
def test_computes_what_the_writer_computes(pipeline, networks, architecture, inputs):
    found = errors(ours(networks, architecture, inputs), theirs(pipeline, architecture, inputs))
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.backend("sdxl", "tiny_sd")
def test_diffusers_computes_what_the_writer_here_computes(pipeline, networks, architecture, inputs, tmp_path):
    diffusers_folder.save(tmp_path / "model", architecture, **networks)
    read = type(pipeline).from_pretrained(tmp_path / "model")

    for part in folders(architecture):
        before, after = (getattr(model, part).state_dict() for model in (pipeline, read))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert not getattr(read, part).training
    for option in ("force_zeros_for_empty_prompt", "requires_aesthetics_score"):
        assert read.config.get(option) == pipeline.config.get(option)
    found = errors(theirs(read, architecture, inputs), theirs(pipeline, architecture, inputs))
    assert max(found.values()) == 0, found
    assert read.scheduler.config.prediction_type == architecture.prediction_type
    assert read.vae.config.scaling_factor == architecture.autoencoder.scaling_factor
    assert read.unet.config.sample_size * read.vae_scale_factor == architecture.image_size


@pytest.mark.parametrize("architecture", ["sd1"], indirect=True)
def test_diffusers_reads_bfloat16(pipeline, networks, architecture, tmp_path):
    from diffusers import StableDiffusionPipeline

    diffusers_folder.save(tmp_path / "model", architecture, dtype="bfloat16", **networks)
    read = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None, torch_dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder"):
        after = getattr(read, part).state_dict()
        for name, tensor in getattr(pipeline, part).state_dict().items():
            assert torch.equal(after[name], tensor.bfloat16())


@pytest.mark.parametrize("size", [49408, 1000])
@pytest.mark.parametrize("architecture", ["sd1", "sd2"], indirect=True)
def test_diffusers_tokenizes_alike(architecture, size, tmp_path):
    from transformers import CLIPTokenizer

    shape = architecture.text_encoder
    diffusers_folder.write_tokenizer(tmp_path, to_diffusers(architecture)["tokenizer"], shape.length, size)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    prompts = ["", "a slice of Pizza, 3 don'ts", "naïve café 🍕"]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="np").input_ids
    ours = read_tokenizer(tmp_path, rows=size)
    assert (ours.vocab_size, ours.end_of_text) == (size, size - 1)
    np.testing.assert_array_equal(tokens, ours.tokenize(prompts, pad_token=shape.pad_token))
    assert ours.decode(ours.encode("pizza")) == "<|startoftext|>pizza <|endoftext|>"


def test_an_added_word_is_no_end_of_text(build, tmp_path):
    """Transformers pools at the number that the configuration states, which a word after CLIP's must not move."""
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

    tokenizer = SimpleTokenizer(1000)
    tokenizer.add_tokens("<toy>")
    encoders = {name: replace(shape, vocabulary=1001) for name, shape in TINY_SDXL.text_encoders.items()}
    architecture = replace(TINY_SDXL, **encoders)
    networks = build(architecture)
    fill(networks["text_encoder_2"], "text_encoder_2", architecture)
    diffusers_folder.save(tmp_path / "model", architecture, words=tokenizer, **networks)
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "model" / "tokenizer_2")("a <toy>", padding="max_length")
    tokens = np.array([theirs.input_ids])
    np.testing.assert_array_equal(
        tokens, tokenizer.tokenize("a <toy>", pad_token=architecture.text_encoder_2.pad_token)
    )
    read = CLIPTextModelWithProjection.from_pretrained(tmp_path / "model" / "text_encoder_2")
    pooled = networks["text_encoder_2"]([tokens, np.arange(77)[None]])[1]
    expected = read(torch.tensor(tokens)).text_embeds.detach().numpy()
    np.testing.assert_allclose(keras.ops.convert_to_numpy(pooled), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", ["sd1", "sdxl"], indirect=True)
@pytest.mark.parametrize(
    ("options", "files"),
    [({"variant": "fp16"}, "*.fp16.safetensors"), ({"max_shard_size": "100KB"}, "*-of-*.safetensors")],
)
def test_reads_variants_and_shards(pipeline, networks, architecture, values, tmp_path, options, files):
    pipeline.save_pretrained(tmp_path, **options)
    assert len(list(tmp_path.rglob(files))) == len(list(tmp_path.rglob("*.safetensors"))) >= 3
    expected = values(networks)
    for network in networks.values():
        for variable in network.variables:
            variable.assign(np.zeros(tuple(variable.shape), "float32"))
    DiffusersFolder(tmp_path).load(**networks)
    found = values(networks)
    for name, arrays in expected.items():
        for path, array in arrays.items():
            np.testing.assert_array_equal(found[name][path], array)


@pytest.mark.parametrize("architecture", ["sd1"], indirect=True)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_reads_half_precision(pipeline, networks, architecture, values, build, tmp_path, dtype):
    pipeline.save_pretrained(tmp_path)
    half = type(pipeline.unet).from_pretrained(tmp_path / "unet", torch_dtype=getattr(torch, dtype))
    half.save_pretrained(tmp_path / "unet")
    others = build(architecture, ["diffusion_model"])
    DiffusersFolder(tmp_path).load(**others)
    expected = values(networks)["diffusion_model"]
    for path, array in values(others)["diffusion_model"].items():
        rounded = torch.from_numpy(expected[path]).to(getattr(torch, dtype)).float().numpy()
        np.testing.assert_array_equal(array, rounded)
