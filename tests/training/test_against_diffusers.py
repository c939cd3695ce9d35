"""One step of training as diffusers and peft compute it in float64: the loss and every gradient."""

import copy

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_diffusion import SimpleTokenizer, StableDiffusion
from keras_diffusion.checkpoints.mapping import loading
from keras_diffusion.checkpoints.mapping.names import controlnet as controlnet_rows
from keras_diffusion.checkpoints.mapping.names import rows
from keras_diffusion.engines.choice import compiles_always
from keras_diffusion.networks.timesteps import timestep_embedding
from keras_diffusion.sampling.schedules import noise_schedule
from keras_diffusion.training import losses
from keras_diffusion.training.optimizers import default_optimizer
from keras_diffusion.training.trainer import Trainer

from ..golden import lora, networks
from .reference import TOLERANCE, Gradients, gradients, halves, require_equal

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")
pytestmark = [pytest.mark.backend("v_prediction"), pytest.mark.filterwarnings("ignore")]  # targets are made by NumPy

TIMESTEPS = [981, 40]


@pytest.fixture(scope="module", params=["epsilon", "v_prediction"])
def model(request):
    return StableDiffusion(preset=lora.ARCHITECTURE, prediction_type=request.param)


@pytest.fixture(scope="module")
def pipeline(model, tmp_path_factory):
    """diffusers' pipeline of the same weights, in float64."""
    path = tmp_path_factory.mktemp("models") / "model"
    model.save_to_preset(path)
    return diffusers.StableDiffusionPipeline.from_pretrained(path, safety_checker=None).to(torch.float64)


@pytest.fixture(scope="module")
def inputs(model):
    generator = np.random.default_rng(0)
    latents, noise = generator.standard_normal((2, 2, 8, 8, 4)).astype("float32")
    context = generator.standard_normal((2, 7, 16)).astype("float32")
    return latents, noise, context


def prepared(model, train, inputs, caption=None, image=None, **options):
    """A trainer, and a function that takes one step, puts gradients in the place of variables, and returns the loss."""
    latents, noise, context = inputs
    trainer = Trainer(model, train, **options)
    trainer.compile(Gradients(1.0), run_eagerly=not compiles_always())
    alpha, sigma = losses.levels(noise_schedule()[TIMESTEPS])
    x = {
        "latent": losses.noisy(latents, noise, alpha, sigma),
        "timestep_embedding": timestep_embedding(TIMESTEPS, model.architecture.diffusion_model.frequencies),
        "context": context,
    }
    if image is not None:
        x["image"] = image.astype("float32")
    if caption:
        pad = model.architecture.text_encoder.pad_token
        trainer.tokens = x["tokens"] = trainer.learner.tokenizer.tokenize([caption] * 2, pad_token=pad)
    return trainer, lambda: float(
        trainer.train_on_batch(
            x, losses.target(model.architecture.prediction_type, latents, noise, alpha, sigma), np.ones(2, "float32")
        )
    )


def reference_loss(pipeline, inputs, encoded=None, controlnet=None, image=None):
    """The loss in torch, with diffusers' own scheduler for what is mixed and what is the target."""
    latents, noise, context = (torch.tensor(x, dtype=torch.float64) for x in inputs)
    context = context if encoded is None else encoded
    latents, noise = latents.permute(0, 3, 1, 2), noise.permute(0, 3, 1, 2)
    timesteps = torch.tensor(TIMESTEPS)
    scheduler = pipeline.scheduler
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
    noisy, residuals = scheduler.add_noise(latents, noise, timesteps), {}
    if controlnet:
        down, middle = controlnet(noisy, timesteps, context, torch.tensor(image).permute(0, 3, 1, 2), return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    prediction = pipeline.unet(noisy, timesteps, context, **residuals).sample
    return torch.nn.functional.mse_loss(prediction, target)


def in_place(network, rows):
    """What stands in the place of every variable of a network, by its name in diffusers."""
    return {
        target.name: loading.stored(ops.convert_to_numpy(target.variable), target.layout)
        for target in loading.targets(network, rows)
    }


def test_whole_model(model, pipeline, inputs):
    before = [np.array(ops.convert_to_numpy(v)) for v in model.diffusion_model.variables]
    _, step = prepared(model, "diffusion_model", inputs)
    reference = reference_loss(pipeline, inputs)
    try:
        assert step() == pytest.approx(float(reference), rel=TOLERANCE)
        names = rows("diffusion_model", model.architecture)
        require_equal(in_place(model.diffusion_model, names), gradients(reference, pipeline.unet))
    finally:
        for variable, value in zip(model.diffusion_model.variables, before, strict=True):
            variable.assign(value)


def test_controlnet(model, pipeline, inputs, tmp_path):
    """Every weight, none of which is zero; the folder brings them to diffusers."""
    image = np.random.default_rng(2).random((2, 32, 32, 3))
    trainer, step = prepared(model, "controlnet", inputs, image=image)
    generator = np.random.default_rng(1)
    for variable in trainer.trainable_variables:
        variable.assign(variable + generator.standard_normal(variable.shape) / 10)
    trainer.save_controlnet(tmp_path / "controlnet")
    controlnet = diffusers.ControlNetModel.from_pretrained(tmp_path / "controlnet").to(torch.float64)
    reference = reference_loss(pipeline, inputs, controlnet=controlnet, image=image)
    assert step() == pytest.approx(float(reference), rel=TOLERANCE)
    names = controlnet_rows(trainer.controlnet.architecture, trainer.controlnet.get_config()["conditioning"])
    require_equal(in_place(trainer.controlnet, names), gradients(reference, controlnet))


def test_lora(model, pipeline, inputs, tmp_path):
    """Every kind of layer, with halves that are not zero; the file brings them to diffusers and peft."""
    trainer, step = prepared(model, "lora", inputs, rank=2, alpha=3, layers="all")
    generator = np.random.default_rng(1)
    for variable in trainer.trainable_variables:
        variable.assign(generator.standard_normal(variable.shape) / 10)
    trainer.save_lora(tmp_path / "lora.safetensors", format="diffusers")
    pipeline.load_lora_weights(tmp_path, weight_name="lora.safetensors")
    try:
        pipeline.unet.double()
        reference = reference_loss(pipeline, inputs)
        parameters = {name: p for name, p in pipeline.unet.named_parameters() if "lora_" in name}
        theirs = dict(zip(parameters, torch.autograd.grad(reference, parameters.values()), strict=True))
    finally:
        pipeline.unload_lora_weights()
    assert step() == pytest.approx(float(reference), rel=TOLERANCE)
    require_equal(halves(trainer), theirs, floor=0.03)


def test_lcm_lora(model, pipeline, tmp_path):
    """A step of distillation by the formulas of diffusers' train_lcm_distill_sd_wds.py: the average is the target."""
    if model.architecture.prediction_type == "epsilon":
        pytest.skip("Its coefficients are tested alone.")
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), "uint8")).save(tmp_path / f"{i}.png")
    trainer = Trainer(model, "lcm_lora", rank=2, layers="attention", target_ema=0.75)
    trainer.compile(Gradients(1.0), run_eagerly=not compiles_always())
    values, average = np.random.default_rng(1).standard_normal((2, *trainer.learner.values.shape)) / 10
    trainer.learner.average.assign(average)
    average = 0.75 * average + 0.25 * values
    for name, vector in (("average", average), ("lcm", values)):
        trainer.learner.values.assign(vector)
        trainer.save_lora(tmp_path / f"{name}.safetensors")
    examples = trainer.examples(tmp_path, "a toy", size=(32, 32), batch_size=2, seed=4)
    x, y, weights = examples[0]
    embeddings = timestep_embedding(np.arange(1000), model.architecture.diffusion_model.frequencies)
    start, after = (
        torch.tensor([np.abs(embeddings - row).sum(axis=1).argmin() for row in x[name]])
        for name in ("timestep_embedding", "next_timestep_embedding")
    )
    assert ((start + 1) % 20 == 0).all()
    assert (start - after == torch.where(start < 20, 19, 20)).all()
    assert ((x["guidance"] >= 3) & (x["guidance"] < 15)).all()

    latent, context, unconditional, w = (
        torch.tensor(x[name], dtype=torch.float64) for name in ("latent", "context", "unconditional", "guidance")
    )
    latent, w = latent.permute(0, 3, 1, 2), w[:, None, None, None]
    scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
    signal = scheduler.alphas_cumprod.double()

    def clean_and_noise(prediction, x, t):
        alpha, sigma = (part[:, None, None, None] for part in (signal[t].sqrt(), (1 - signal[t]).sqrt()))
        return alpha * x - sigma * prediction, alpha * prediction + sigma * x

    def consistent(x, t):
        scheduler.sigma_data = 0.5
        skip, out = (
            torch.stack(column)[:, None, None, None]
            for column in zip(*map(scheduler.get_scalings_for_boundary_condition_discrete, t.double()), strict=True)
        )
        return skip * x + out * clean_and_noise(pipeline.unet(x, t, context).sample, x, t)[0]

    with torch.no_grad():
        guided, unguided = (
            clean_and_noise(pipeline.unet(latent, start, text).sample, latent, start)
            for text in (context, unconditional)
        )
        clean, noise = (one + w * (one - other) for one, other in zip(guided, unguided, strict=True))
        alpha, sigma = (part[:, None, None, None] for part in (signal[after].sqrt(), (1 - signal[after]).sqrt()))
        later = alpha * clean + sigma * noise
    try:
        pipeline.load_lora_weights(tmp_path, weight_name="average.safetensors")
        pipeline.unet.double()
        with torch.no_grad():
            target = consistent(later, after)
        pipeline.unload_lora_weights()
        pipeline.load_lora_weights(tmp_path, weight_name="lcm.safetensors")
        pipeline.unet.double()
        reference = torch.mean((consistent(latent, start) - target) ** 2)
        parameters = {name: p for name, p in pipeline.unet.named_parameters() if "lora_" in name}
        theirs = dict(zip(parameters, torch.autograd.grad(reference, parameters.values()), strict=True))
    finally:
        pipeline.unload_lora_weights()
    trainer.learner.loss = losses.mean_squared_error  # its own has a kink, where gradients turn on roundings
    assert float(trainer.train_on_batch(x, y, weights)) == pytest.approx(float(reference), rel=TOLERANCE)
    require_equal(halves(trainer), theirs, floor=1.0)
    np.testing.assert_allclose(ops.convert_to_numpy(trainer.learner.average), average, atol=1e-6)


def test_embedding(model, pipeline, inputs, tmp_path):
    """The gradients of the vectors alone, as transformers has them; diffusers reads the file."""
    model = copy.copy(model)
    model.tokenizer = SimpleTokenizer()
    trainer, step = prepared(model, "embedding", inputs, caption="a <toy>", word="<toy>", initial_word="toy", vectors=2)
    trainer.learner.vectors.assign(np.random.default_rng(1).standard_normal((2, 16)))
    start = ops.convert_to_numpy(trainer.learner.vectors).copy()
    trainer.save_textual_inversion(tmp_path / "toy.safetensors")
    pipeline = copy.copy(pipeline)
    pipeline.tokenizer, pipeline.text_encoder = copy.deepcopy((pipeline.tokenizer, pipeline.text_encoder))
    pipeline.load_textual_inversion(tmp_path / "toy.safetensors")
    table = pipeline.text_encoder.get_input_embeddings().weight
    np.testing.assert_array_equal(table[-2:].detach().numpy(), start)
    prompt = pipeline.maybe_convert_prompt("a <toy>", pipeline.tokenizer)
    tokens = pipeline.tokenizer([prompt] * 2, padding="max_length", return_tensors="pt").input_ids
    np.testing.assert_array_equal(tokens, trainer.tokens)
    reference = reference_loss(pipeline, inputs, pipeline.text_encoder(tokens)[0])
    [gradient] = torch.autograd.grad(reference, [table])
    assert step() == pytest.approx(float(reference), rel=TOLERANCE)
    ours, theirs = ops.convert_to_numpy(trainer.learner.vectors), gradient[-2:].numpy()
    assert np.abs(ours - theirs).max() <= TOLERANCE * np.abs(theirs).max()


def test_a_run(tmp_path):
    """Every loss of four steps, and the weights at its end, as torch's AdamW has them in float64."""
    model = StableDiffusion(16, 16, preset=lora.SMALL)
    networks.fill(model.diffusion_model, "diffusion_model", model.architecture)
    for i in range(2):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), "uint8")).save(tmp_path / f"{i}.png")
    model.save_to_preset(tmp_path / "model")
    unet = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "model" / "unet").to(torch.float64)
    trainer = Trainer(model, "diffusion_model")
    trainer.compile(default_optimizer(1e-4), run_eagerly=not compiles_always())
    batches = trainer.examples(tmp_path, "a toy", batch_size=2, steps=4, snr_gamma=5.0)
    ours = Losses()
    trainer.fit(batches, verbose=0, callbacks=[ours])

    optimizer, theirs = torch.optim.AdamW(unet.parameters(), 1e-4, weight_decay=1e-2), []
    for i in range(4):
        x, target, weights = batches[i]
        latent, target = (torch.tensor(a, dtype=torch.float64).permute(0, 3, 1, 2) for a in (x["latent"], target))
        row = [np.abs(batches._embeddings - t).sum(axis=1).argmin() for t in x["timestep_embedding"]]
        prediction = unet(latent, torch.tensor(row), torch.tensor(x["context"], dtype=torch.float64)).sample
        loss = (((prediction - target) ** 2).mean(dim=(1, 2, 3)) * torch.tensor(weights)).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        theirs.append(float(loss))
    np.testing.assert_allclose(ours.means, np.cumsum(theirs) / np.arange(1, 5), atol=1e-5)
    stored = dict(unet.named_parameters())
    for target in loading.targets(model.diffusion_model, rows("diffusion_model", model.architecture)):
        value = loading.stored(ops.convert_to_numpy(target.variable), target.layout)
        reference = stored[target.name].detach().numpy()
        np.testing.assert_allclose(value.reshape(reference.shape), reference, atol=1e-4, err_msg=target.name)


class Losses(keras.callbacks.Callback):
    """Remembers the mean of the losses after every step, as Keras reports it."""

    def on_train_begin(self, logs=None):
        self.means = []

    def on_train_batch_end(self, batch, logs=None):
        self.means.append(logs["loss"])
