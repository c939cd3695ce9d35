"""What is on the accelerator: compiled functions, buffers of scenes, and the weights."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import NamedTuple

import jax
import jax.numpy as jnp
import model
import numpy as np
import steps
from muon import Layout
from report import COLUMNS, PROMPTS, decibels, sheet

CACHE = "/tmp/icons-compiled"  # a second run on the same machine starts sooner


class Scale(NamedTuple):
    """Holds the sizes of a run: batches, steps of a call, and numbers of scenes."""

    autoencoder_batch: int
    autoencoder_steps: int
    batch: int
    steps: int
    block: int  # scenes handed over together
    file: int  # scenes in a file
    enough: int  # scenes to begin with
    images: int  # scenes kept for the autoencoder
    latents: int  # scenes kept for the diffusion model
    part: int  # images encoded at a time


SCALES = {
    "full": Scale(64, 32, 512, 16, 4096, 256, 12288, 131072, 524288, 512),
    "tiny": Scale(4, 2, 16, 4, 32, 16, 64, 128, 256, 16),
}


class Machine:
    """Networks, compiled functions and buffers.

    Args:
        scale: A name in `SCALES`.
        channels: Number of latent channels.
        dtype: A Keras dtype policy.
        seed: Of the first weights.
        found: Weights to start from, by part; {} for none.
        guidance: Of the images drawn.
        feed: The `Feed`.
        log: Function of a line.
    """

    def __init__(self, scale, channels, dtype, seed, found, guidance, feed, log):
        self.scale, self.feed, self.log = SCALES[scale], feed, log
        self.architecture = model.with_latents(model.SHAPES[scale], channels)
        jax.config.update("jax_compilation_cache_dir", CACHE)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 2.0)
        with jax.default_device(jax.devices("cpu")[0]):
            self.networks = model.build(self.architecture, dtype)
        weights = model.first_weights(self.networks, seed)
        for part in found.values():
            weights |= part
        self.weights = {name: jnp.asarray(value) for name, value in weights.items()}
        self.parts = {part: model.names(self.networks, part) for part in model.PARTS}
        self.layouts = {part: Layout.of(self.own(part)) for part in self.parts}
        self.splits = {part: jax.jit(layout.split) for part, layout in self.layouts.items()}
        self.encodes = bool(found.get("autoencoder"))  # whether the autoencoder is finished
        self.count = 0  # of the scenes so far
        self.prompts, self.empty = (model.tokens(self.architecture, texts) for texts in (list(PROMPTS), [""]))
        side = self.architecture.image_size // self.architecture.autoencoder.factor
        shape = (side, side, channels)
        self.noise = np.random.default_rng(seed).standard_normal((len(PROMPTS), *shape)).astype("float32")
        self.images = jnp.zeros((self.scale.images, *(self.architecture.image_size,) * 2, 3), "uint8")
        self.latents = jnp.zeros((self.scale.latents, *shape), "float16")
        self.tokens = jnp.zeros((self.scale.latents, self.architecture.text_encoder.length), "int32")
        self.pool, self.compiled, self.tracing = ThreadPoolExecutor(3), {}, Lock()
        self.compile(guidance)

    def compile(self, guidance):
        """Starts to compile all functions, beside what follows."""
        scale, shape = self.scale, self.architecture.diffusion_model
        number = jax.ShapeDtypeStruct((), "int32")
        for name in ("images", "latents", "tokens"):
            buffer = getattr(self, name)
            rows = jax.ShapeDtypeStruct((scale.block, *buffer.shape[1:]), buffer.dtype)
            self.add(f"put {name}", steps.put(), buffer, rows, number, donate=(0,))
        loss = steps.diffusion_loss(self.networks, shape, self.empty)  # the longest first
        self.add_training("diffusion", loss, (self.latents, self.tokens), scale.batch, scale.steps)
        if not self.encodes:
            loss = steps.autoencoder_loss(self.networks)
            data = (self.images,)
            self.add_training("autoencoder", loss, data, scale.autoencoder_batch, scale.autoencoder_steps)
        self.add("encode", steps.encoding(self.networks, scale.block, scale.part), self.weights, self.images, number)
        some = jax.ShapeDtypeStruct((scale.part, *self.images.shape[1:]), "uint8")
        self.add("rebuild", steps.reconstruction(self.networks), self.weights, some)
        draw = steps.drawing(self.networks, shape, guidance)
        self.add("draw", draw, self.weights, self.prompts, self.empty, self.noise)

    def add_training(self, part, loss, data, batch, count):
        layout = self.layouts[part]
        state = jax.eval_shape(functools.partial(steps.first_state, layout), self.own(part))
        rates, key = jax.ShapeDtypeStruct((count,), "float32"), jax.ShapeDtypeStruct((2,), "uint32")
        number = jax.ShapeDtypeStruct((), "int32")
        self.add(part, steps.training(loss, layout, batch), state, data, number, rates, key, donate=(0,))

    def add(self, name, function, *inputs, donate=()):
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), inputs)

        def work():
            start = time.monotonic()
            with self.tracing:  # one at a time, in the order in which they are needed
                lowered = jax.jit(function, donate_argnums=donate).lower(*shapes)
            result = lowered.compile()
            if (seconds := time.monotonic() - start) > 2:
                self.log(f"compiled {name} in {seconds:.1f} s")
            return result

        self.compiled[name] = self.pool.submit(work)

    def call(self, name, *inputs):
        return self.compiled[name].result()(*inputs)

    def own(self, part):
        """The weights of a part in `model.PARTS`."""
        return {name: self.weights[name] for name in self.parts[part]}

    def start(self, part):
        return jax.jit(functools.partial(steps.first_state, self.layouts[part]))(self.own(part))

    def average(self, part, state):
        """The averaged weights of a state, by name."""
        return self.splits[part](state[1])

    # Scenes

    def put(self, name, rows, place):
        setattr(self, name, self.call(f"put {name}", getattr(self, name), rows, np.int32(place)))

    def take(self):
        """Takes a block of scenes, if there is one and room for it; tells whether it did."""
        if not self.encodes and self.count + self.scale.block > self.scale.images:
            return False
        taken = self.feed.take(self.scale.block)
        if taken is None:
            return False
        images, tokens = taken
        place = self.count % self.scale.latents
        self.put("tokens", tokens, place)
        self.put("images", images, 0 if self.encodes else place)
        if self.encodes:
            self.encode(0, place)
        self.count += self.scale.block
        return True

    def encode(self, source, place):
        self.put("latents", self.call("encode", self.weights, self.images, np.int32(source)), place)

    def finish_autoencoder(self, weights):
        """Takes the autoencoder's weights over, its latents standardized, and encodes all scenes."""
        self.weights = {**self.weights, **weights}
        latents = np.asarray(self.call("encode", self.weights, self.images, np.int32(0)))
        self.log(f"latents before: mean {latents.mean((0, 1, 2))}, deviation {latents.std((0, 1, 2))}")
        host = {name: np.asarray(value) for name, value in weights.items()}
        self.weights |= {name: jnp.asarray(value) for name, value in model.standardized(host, latents).items()}
        for place in range(0, self.count, self.scale.block):
            self.encode(place, place)
        self.encodes = True

    # Images

    def rebuilt(self):
        """Returns images and what the autoencoder makes of them."""
        images = np.asarray(self.images[: self.scale.part])
        return images, np.asarray(self.call("rebuild", self.weights, images))

    def draw(self, path, weights):
        """Draws the prompts and some reconstructions; returns the latter's decibels."""
        start = time.monotonic()
        images = np.asarray(self.call("draw", {**self.weights, **weights}, self.prompts, self.empty, self.noise))
        originals, rebuilt = self.rebuilt()
        rows = [part[i : i + COLUMNS] for i in (0, COLUMNS) for part in (originals, rebuilt)]
        sheet(path, images, PROMPTS, rows)
        self.log(f"drew {path.name} in {time.monotonic() - start:.1f} s")

    def quality(self):
        return decibels(*self.rebuilt()[::-1])
