"""keras-diffusion, on every backend."""

import numpy as np

from peers import GUIDANCE, LENGTH, PROMPT, RANK, TRAINING_STEPS, arrays, profiles

EMOJI = "a slice of pizza"
NUMBERS = np.random.default_rng(0).uniform(-0.5, 0.5, 2**20 + 7).astype("float32")
DTYPES = {"float32": "float32", "float16": "mixed_float16", "stored": "float32_from_float16"}


def step(size, batch, dtype, jit_compile, **_):
    from keras_diffusion import DiffusionModel
    from keras_diffusion.engines.engine import Engine
    from keras_diffusion.engines.plan import Plan
    from keras_diffusion.engines.stages import Conditions
    from keras_diffusion.sampling.samplers import build

    latents, context = arrays(size, batch)
    conditions = Conditions(context, np.full(batch, GUIDANCE, "float32"))
    network, table = DiffusionModel(dtype=DTYPES[dtype]), build("ddim", 1000)
    steps = Engine(jit_compile).denoise(network, latents, conditions, Plan(table))
    return lambda: next(steps)


def decode(size, batch, jit_compile, **_):
    from keras_diffusion import Decoder
    from keras_diffusion.engines.engine import Engine

    engine, decoder, (latents, _) = Engine(jit_compile), Decoder(), arrays(size, batch)
    return lambda: engine.decode(decoder, latents)


def encode(batch, dtype, jit_compile, **_):
    from keras_diffusion import TextEncoder
    from keras_diffusion.engines.engine import Engine

    engine, encoder = Engine(jit_compile), TextEncoder(dtype=DTYPES[dtype])
    return lambda: engine.encode(encoder, np.zeros((batch, LENGTH), "int32"))


def image(size, batch, steps, dtype, preset, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    model = StableDiffusion.from_preset(preset, DTYPES[dtype], size, size, jit_compile)
    return lambda: model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0, verbose=0)


def cold(batch, steps, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    model = StableDiffusion.from_preset("emoji", jit_compile=jit_compile)
    return lambda: model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0, verbose=0)


def gpu(model, size, steps, dtype, compiled):
    """Answers the questions of gpu.py; every answer waits for the GPU, since it holds arrays of the host."""
    import keras

    from keras_diffusion import StableDiffusion
    from keras_diffusion.architectures import ARCHITECTURES

    keras.initializers.GlorotUniform.__call__ = uniform
    architecture, trainers = ARCHITECTURES[model], []
    model = StableDiffusion(size, size, compiled, dtype, architecture)

    def draw(batch, output="array", model=model, steps=steps):
        return model.text_to_image(PROMPT, batch_size=batch, num_steps=steps, seed=0, verbose=0, output=output)

    def image(batch):
        draw(batch)
        return {"peak_gpu_mb": peak()}

    def decode(batch):
        model.decode(arrays(size, batch)[0])

    def profile(batch):
        profiler = {"jax": profiles.of_jax, "torch": profiles.of_torch}.get(keras.backend.backend())
        return profiler(lambda: draw(batch, "latents")) if profiler else {}

    def bundled(batch):
        """The bundled model's picture in this precision, beside its own in float32."""
        models = (StableDiffusion.from_preset("emoji", kind, jit_compile=compiled) for kind in ("float32", dtype))
        exact, half = (model.text_to_image(EMOJI, seed=0, verbose=0) for model in models)
        return {"psnr": psnr(exact, half), "deviation": float(half.std())}

    def precision(batch):
        """One image of random weights in this precision, beside the same weights in float32."""
        exact = StableDiffusion(size, size, compiled, "float32", architecture)
        for name in ("text_encoder", "diffusion_model", "decoder"):
            for ours, theirs in zip(getattr(exact, name).variables, getattr(model, name).variables, strict=True):
                ours.assign(theirs)
        few = min(steps, 10)
        half, exact = (draw(1, "latents", which, few).astype("float64") for which in (model, exact))
        error = np.linalg.norm(half - exact) / np.linalg.norm(exact)
        return {"relative_error": float(error), "largest": float(np.abs(exact).max())}

    def train(batch):
        from keras_diffusion.training import Trainer

        if not trainers:
            trainers.append(Trainer(model, "lora", rank=RANK))
            trainers[0].compile()
        latents, context = arrays(size, batch)
        embedding = np.ones((batch, architecture.diffusion_model.frequencies), "float32")
        inputs = {"latent": latents, "timestep_embedding": embedding, "context": context[:batch]}
        for _ in range(TRAINING_STEPS):
            loss = trainers[0].train_on_batch(inputs, latents)
        return {"loss": float(loss), "peak_gpu_mb": peak()}

    return {
        "latents": lambda batch: {"finite": bool(np.isfinite(draw(batch, "latents")).all())},
        "image": image,
        "decode": decode,
        "profile": profile,
        "train": train,
        "bundled": bundled,
        "precision": precision,
    }


def uniform(initializer, shape, dtype=None):
    """Small random numbers that repeat, in place of a minute of Keras' own."""
    from keras import ops

    return ops.convert_to_tensor(np.resize(NUMBERS * (6 / sum(shape[-2:])) ** 0.5, shape), dtype)


def peak():
    """The most memory of the GPU that was in use, in MB, or None."""
    import keras

    backend = keras.backend.backend()
    if backend == "jax":
        import jax

        statistics = jax.local_devices()[0].memory_stats() or {}
        used = statistics.get("peak_bytes_in_use")
    elif backend == "torch":
        import torch

        used = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
    else:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        used = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpus else None
    return used and round(used / 1e6)


def psnr(image, other):
    error = np.mean((image.astype("float64") - other.astype("float64")) ** 2)
    return round(float(10 * np.log10(255**2 / max(error, 1e-10))), 1)


def build(size, dtype, preset, jit_compile, **_):
    from keras_diffusion import StableDiffusion

    return lambda: StableDiffusion.from_preset(preset, DTYPES[dtype], size, size, jit_compile)
