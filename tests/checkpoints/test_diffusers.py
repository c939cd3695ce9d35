"""Folders that diffusers writes are read here, and those written here by diffusers; both compute the same."""

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
from keras_diffusion.networks.diffusion_model import timestep_embedding
from keras_diffusion.prompts.tokenizer import SimpleTokenizer

torch = pytest.importorskip("torch")
pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]

TOLERANCE = 1e-5
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
}


@pytest.fixture(scope="module", params=LIKE)
def architecture(request):
    return LIKE[request.param]


@pytest.fixture(scope="module")
def pipeline(architecture, tmp_path_factory):
    """A diffusers pipeline with random weights."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    configs = to_diffusers(architecture)
    path = tmp_path_factory.mktemp("tokenizer")
    diffusers_folder.write_tokenizer(path, configs["tokenizer"], architecture.text_encoder.length)
    networks = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**configs["text_encoder"])),
        "unet": UNet2DConditionModel.from_config(configs["unet"]),
        "vae": AutoencoderKL.from_config(configs["vae"]),
    }
    with torch.no_grad():
        for network in networks.values():
            for parameter in network.eval().parameters():
                parameter += 0.05 * torch.randn_like(parameter)  # no norm stays one, no bias zero
    return StableDiffusionPipeline(
        tokenizer=CLIPTokenizer.from_pretrained(path),
        scheduler=DDIMScheduler.from_config(configs["scheduler"]),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **networks,
    )


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
    tokens = SimpleTokenizer().tokenize("a slice of pizza", pad_token=architecture.text_encoder.pad_token)
    return {
        "tokens": tokens,
        "latents": random.normal(size=(2, size, size, 4)).astype("float32"),
        "timesteps": np.array([981, 7]),
        "context": random.normal(size=(2, 77, unet.context)).astype("float32"),
        "images": random.uniform(-1, 1, (2, 16, 24, 3)).astype("float32"),
    }


def ours(networks, architecture, inputs):
    """What the networks here compute, by network."""
    frequencies = timestep_embedding(inputs["timesteps"], architecture.diffusion_model.frequencies)
    outputs = {
        "text_encoder": networks["text_encoder"]([inputs["tokens"], np.arange(77)[None]]),
        "diffusion_model": networks["diffusion_model"]([inputs["latents"], frequencies, inputs["context"]]),
        "image_encoder": networks["image_encoder"](inputs["images"]),
        "decoder": networks["decoder"](inputs["latents"]),
    }
    return {name: keras.ops.convert_to_numpy(output) for name, output in outputs.items()}


def theirs(pipeline, architecture, inputs):
    """What diffusers and transformers compute, by our names."""

    def first(array):
        return torch.from_numpy(np.moveaxis(array, -1, 1).copy())

    latents, context = first(inputs["latents"]), torch.from_numpy(inputs["context"])
    scale = architecture.autoencoder.scaling_factor
    with torch.no_grad():
        outputs = {
            "diffusion_model": pipeline.unet(latents, torch.from_numpy(inputs["timesteps"]), context).sample,
            "image_encoder": pipeline.vae.encode(first(inputs["images"])).latent_dist.mean * scale,
            "decoder": pipeline.vae.decode(latents / scale).sample,
        }
        tokens = torch.from_numpy(inputs["tokens"].astype("int64"))
        context = pipeline.text_encoder(tokens).last_hidden_state.numpy()
    return {"text_encoder": context, **{name: np.moveaxis(x.numpy(), 1, -1) for name, x in outputs.items()}}


def errors(one, other):
    """The largest difference, by network, in units of the output's standard deviation where that is above 1."""
    return {name: np.abs(one[name] - other[name]).max() / max(1, other[name].std()) for name in other}


def test_computes_what_the_writer_computes(pipeline, networks, architecture, inputs):
    found = errors(ours(networks, architecture, inputs), theirs(pipeline, architecture, inputs))
    assert max(found.values()) < TOLERANCE, found


def test_diffusers_computes_what_the_writer_here_computes(pipeline, networks, architecture, inputs, tmp_path):
    from diffusers import StableDiffusionPipeline

    diffusers_folder.save(tmp_path / "model", architecture, **networks)
    read = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)

    before = {**pipeline.unet.state_dict(), **pipeline.vae.state_dict(), **pipeline.text_encoder.state_dict()}
    after = {**read.unet.state_dict(), **read.vae.state_dict(), **read.text_encoder.state_dict()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    for part in ("unet", "vae", "text_encoder"):
        assert not getattr(read, part).training
    found = errors(theirs(read, architecture, inputs), theirs(pipeline, architecture, inputs))
    assert max(found.values()) == 0, found
    assert read.scheduler.config.prediction_type == architecture.prediction_type
    assert read.vae.config.scaling_factor == architecture.autoencoder.scaling_factor
    assert read.unet.config.sample_size * read.vae_scale_factor == architecture.image_size


def test_diffusers_reads_bfloat16(pipeline, networks, architecture, tmp_path):
    from diffusers import StableDiffusionPipeline

    diffusers_folder.save(tmp_path / "model", architecture, dtype="bfloat16", **networks)
    read = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None, torch_dtype=torch.bfloat16)
    for part in ("unet", "vae", "text_encoder"):
        after = getattr(read, part).state_dict()
        for name, tensor in getattr(pipeline, part).state_dict().items():
            assert torch.equal(after[name], tensor.bfloat16())


def test_diffusers_tokenizes_alike(networks, architecture, tmp_path):
    from transformers import CLIPTokenizer

    shape = architecture.text_encoder
    diffusers_folder.write_tokenizer(tmp_path, to_diffusers(architecture)["tokenizer"], shape.length)
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    prompts = ["", "a slice of Pizza, 3 don'ts", "naïve café 🍕"]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(tokens, SimpleTokenizer().tokenize(prompts, pad_token=shape.pad_token))


@pytest.mark.parametrize("architecture", ["sd1"], indirect=True)
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
