"""Training examples: what is in a batch, and that nothing but seed and number decides it."""

import numpy as np
import pytest
from PIL import Image

from keras_diffusion import StableDiffusion, architectures
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.folder import Record, records


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=architectures.TINY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i, size in enumerate([(64, 64), (70, 90), (30, 20)]):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype="uint8")).save(path / f"{i}.png")
    return path


def equal(a, b):
    (x, *rest), (y, *others) = a, b
    assert x.keys() == y.keys()
    return all(np.array_equal(x[key], y[key]) for key in x) and all(map(np.array_equal, rest, others))


def without_noise(model, images, **options):
    """The inputs of examples of the first timestep alone, which are nearly the latents."""
    examples = Examples(model, images, sample_latents=False, **options)
    examples._alphas_cumprod = np.ones_like(examples._alphas_cumprod)
    return examples


def test_the_stream_goes_on_at_any_step(model, folder):
    options = {"steps": 4, "seed": 3, "flip": True, "batch_size": 2, "noise_offset": 0.1, "input_perturbation": 0.1}
    examples = Examples.from_folder(model, folder, "a cat", **options)
    again = Examples.from_folder(model, folder, "a cat", **{**options, "first_step": 3, "steps": 1})
    assert equal(examples[3], again[0])
    later = examples[3]
    examples.epoch = 1
    again.epoch = 4
    assert equal(examples[3], again[0])
    assert not equal(examples[3], later)


@pytest.mark.backend
def test_a_batch(model, folder):
    x, y, weights = Examples.from_folder(model, folder, "a cat", batch_size=2)[0]
    assert {name: (array.shape, array.dtype.name) for name, array in x.items()} == {
        "latent": ((2, 8, 8, 4), "float32"),
        "timestep_embedding": ((2, 16), "float32"),
        "context": ((2, 77, 16), "float32"),
    }
    np.testing.assert_array_equal(x["context"], np.repeat(model.encode_text("a cat"), 2, axis=0))
    assert y.shape == (2, 8, 8, 4)
    np.testing.assert_array_equal(weights, [1, 1])


@pytest.mark.backend
def test_latents_are_the_encoders(model, folder):
    """Every image comes once an epoch; the mean is what the encoder returns, a draw differs from it."""
    images = records(folder, "a cat")[:1]
    pixels = np.asarray(Image.open(images[0].path), "float32")[None]
    expected = model._engine.encode_image(model.image_encoder, pixels / 127.5 - 1)
    x, *_ = without_noise(model, images)[0]
    np.testing.assert_allclose(x["latent"], expected, atol=1e-5)
    drawn = Examples(model, images)
    mean, deviation = drawn._sources[0][0].means[0, 0], drawn._sources[0][0].deviations[0, 0]
    np.testing.assert_allclose(mean, expected[0], atol=1e-5)
    latents = np.stack([drawn._drawn(0, number)[0][0] for number in range(200)])
    np.testing.assert_allclose(latents.mean(axis=0), mean, atol=0.4 * deviation.max())
    np.testing.assert_allclose(latents.std(axis=0), deviation, rtol=0.3)


def test_every_image_comes_once_an_epoch_in_another_order(model, folder):
    examples = Examples(model, [Record(record.path, str(i)) for i, record in enumerate(records(folder, ""))])
    texts = [[examples._drawn(0, epoch * 3 + i)[0][2] for i in range(3)] for epoch in range(6)]
    assert all(sorted(order) == [1, 2, 3] for order in texts)
    assert len(set(map(tuple, texts))) > 1


def test_shares_of_flips_empty_captions_and_timesteps(model, folder):
    examples = Examples.from_folder(model, folder, "a cat", flip=True, caption_dropout=0.25)
    plain, mirrored = examples._sources[0][0].means[:, 0], examples._sources[0][0].means[:, 1]
    assert not np.allclose(plain, mirrored)
    drawn = [examples._drawn(0, number)[0] for number in range(1000)]
    assert np.mean([text == 0 for _, _, text, *_ in drawn]) == pytest.approx(0.25, abs=0.04)
    timesteps = np.array([timestep for _, _, _, timestep, *_ in drawn])
    assert timesteps.min() < 20
    assert timesteps.max() > 980
    assert timesteps.mean() == pytest.approx(500, abs=30)
    embeddings = timestep_embedding(timesteps[:1], 16)
    np.testing.assert_array_equal(examples._embeddings[timesteps[0]], embeddings[0])


def test_classes_are_the_second_half_with_a_loss_of_their_own(model, folder):
    options = {"class_folder": folder, "class_caption": "an animal", "prior_weight": 0.5, "batch_size": 3}
    examples = Examples.from_folder(model, folder, "a sks cat", **options)
    x, _, weights = examples[0]
    assert x["latent"].shape[0] == 6
    np.testing.assert_array_equal(weights, [2, 2, 2, 1, 1, 1])
    np.testing.assert_array_equal(
        x["context"][[0, 3]], np.concatenate(list(map(model.encode_text, ("a sks cat", "an animal"))))
    )
    assert not np.array_equal(examples._drawn(0, 0)[0][1], examples._drawn(1, 0)[0][1])


def test_tokens_instead_of_contexts(model, folder):
    x, *_ = Examples.from_folder(model, folder, "a cat", text="tokens")[0]
    pad = model.architecture.text_encoder.pad_token
    np.testing.assert_array_equal(x["tokens"], model.tokenizer.tokenize("a cat", pad_token=pad))


def test_images_are_scaled_and_cut_around_their_middle(model, tmp_path):
    image = np.zeros((64, 192, 3), "uint8")
    image[:, 64:128] = 200
    Image.fromarray(image).save(tmp_path / "wide.png")
    [[source]] = Examples(model, records(tmp_path, ""), conditions=[tmp_path / "wide.png"])._sources
    [conditions] = source.conditions
    np.testing.assert_allclose(conditions, 200 / 255, atol=1e-6)


def test_damaged_images_are_named_or_skipped(model, folder, tmp_path, caplog):
    bad = tmp_path / "bad.png"
    bad.write_bytes((folder / "0.png").read_bytes()[:200])
    images = [*records(folder, "a cat"), Record(bad, "a cat")]
    with pytest.raises(ValueError, match=r"bad\.png"):
        Examples(model, images)
    assert len(Examples(model, images, damaged="skip")) == 3
    assert "bad.png" in caplog.text
    with pytest.raises(ValueError, match="None of the images"):
        Examples(model, images[-1:], damaged="skip")


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"caption_dropout": 1.5}, {"snr_gamma": 0}, {"size": (60, 64)}, {"text": "x"}, {"damaged": 1}],
)
def test_wrong_options_are_named(model, folder, options):
    with pytest.raises(ValueError, match=next(iter(options)).replace("size", "(size|height)")):
        Examples.from_folder(model, folder, "a cat", **options)
