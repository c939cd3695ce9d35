"""One step of training SDXL as diffusers computes it in float64: the loss, every gradient, and the files after it."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from keras_diffusion import StableDiffusion
from keras_diffusion.architectures import Level
from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.training.trainer import Trainer

from ..test_sdxl import TINY_SDXL
from .reference import TOLERANCE, Gradients, gradients, halves, require_equal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.backend, pytest.mark.filterwarnings("ignore")]

SHAPE = replace(TINY_SDXL.diffusion_model, levels=(Level(16, 2, 0), Level(32, 2, 2)), blocks=1, middle=(2, 0))
ARCHITECTURE = replace(TINY_SDXL, diffusion_model=SHAPE)
CAPTION = "a red cat"
TIME_IDS = [24, 40, 0, (27 - 16) // 2, 16, 16]  # original size, crop and target size of an image of 24x40 at 16x16


@pytest.fixture(scope="module")
def model():
    return StableDiffusion(preset=ARCHITECTURE)


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    model.save_to_preset(path)
    return diffusers.StableDiffusionXLPipeline.from_pretrained(path).to(torch.float64)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 40, 3), "uint8")).save(path / "0.png")
    return path


def prepared(model, train, folder, **options):
    trainer = Trainer(model, train, **options)
    trainer.compile(Gradients(1.0), run_eagerly=not compiles_always())
    return trainer, trainer.examples(folder, CAPTION, batch_size=2)


def reference_loss(pipeline, examples):
    """The loss as in train_text_to_image_sdxl.py, from the caption and what was drawn: latents, noise and timesteps."""
    latents, noise, _, timesteps, *_ = examples.drawn(0)
    latents, noise = (torch.tensor(x, dtype=torch.float64).permute(0, 3, 1, 2) for x in (latents, noise))
    timesteps = torch.tensor(timesteps)
    context, _, pooled, _ = pipeline.encode_prompt([CAPTION] * 2, do_classifier_free_guidance=False)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([TIME_IDS] * 2, dtype=torch.float64)}
    noisy = diffusers.DDPMScheduler.from_config(pipeline.scheduler.config).add_noise(latents, noise, timesteps)
    prediction = pipeline.unet(noisy, timesteps, context, added_cond_kwargs=added).sample
    return torch.nn.functional.mse_loss(prediction, noise)


def test_whole_model(model, pipeline, folder, tmp_path):
    """The folder that is saved after it brings diffusers what stands in the place of the weights, the gradients."""
    before = model.diffusion_model.get_weights()
    trainer, examples = prepared(model, "diffusion_model", folder)
    reference = reference_loss(pipeline, examples)
    try:
        assert float(trainer.train_on_batch(*examples[0])) == pytest.approx(float(reference), rel=TOLERANCE)
        model.save_to_preset(tmp_path / "model")
    finally:
        model.diffusion_model.set_weights(before)
    trained = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet")
    ours = {name: parameter.detach().numpy() for name, parameter in trained.named_parameters()}
    require_equal(ours, gradients(reference, pipeline.unet))


def test_lora(model, pipeline, folder, tmp_path):
    """kohya's file, with SDXL's own names of blocks, brings every half to diffusers and peft."""
    trainer, examples = prepared(model, "lora", folder, rank=2, alpha=3, layers="linear")
    generator = np.random.default_rng(1)
    for variable in trainer.trainable_variables:
        variable.assign(generator.standard_normal(variable.shape) / 10)
    trainer.save_lora(tmp_path / "lora.safetensors")
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    try:
        pipeline.unet.double()
        reference = reference_loss(pipeline, examples)
        parameters = {name: p for name, p in pipeline.unet.named_parameters() if "lora_" in name}
        theirs = dict(zip(parameters, torch.autograd.grad(reference, parameters.values()), strict=True))
    finally:
        pipeline.unload_lora_weights()
    assert float(trainer.train_on_batch(*examples[0])) == pytest.approx(float(reference), rel=TOLERANCE)
    require_equal(halves(trainer), theirs, floor=0.03)
