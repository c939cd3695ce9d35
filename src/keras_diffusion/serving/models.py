"""Holds the models of the server, one of them in memory at a time. Only the worker's thread calls it."""

import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np

from keras_diffusion import __version__
from keras_diffusion.checkpoints import presets
from keras_diffusion.errors import CheckpointMismatchError
from keras_diffusion.images import job_settings
from keras_diffusion.images.reading import open_image, read_images
from keras_diffusion.prompts.tags import take_loras
from keras_diffusion.startup import paused_gc
from keras_diffusion.terminal import quiet

logger = logging.getLogger(__name__)


class Description(NamedTuple):
    """Describes a model by what its files say; sizes are in pixels."""

    name: str
    num_steps: int
    guidance: float
    sampler: str
    spacing: str | None
    img_width: int
    img_height: int
    size_multiple: int


class Models:
    """Presets by name.

    Args:
        paths: A dict from names to presets.
        adapters: The `Adapters`.
        dtype: See `StableDiffusion`, as for `jit_compile`.
        tiny_vae: Where the tiny autoencoder for previews is, or None.

    Attributes:
        loaded: The name of the model in memory, or None.
    """

    def __init__(self, paths, adapters, dtype=None, jit_compile="auto", tiny_vae=None):
        self._paths, self._adapters, self._options = paths, adapters, {"dtype": dtype, "jit_compile": jit_compile}
        self._models, self.loaded, self._tiny_vae, self._controlnets = {}, None, tiny_vae, {}

    @property
    def names(self):
        return [*self._paths]

    def describe(self):
        """Imports Keras, and returns the `Description` of each model by its name; no weights are read."""
        with paused_gc(), quiet():
            import keras_diffusion.stable_diffusion  # noqa: F401
        return {name: _describe(name, path) for name, path in self._paths.items()}

    def draw(self, job, inputs, on_step):
        """Draws the images of a job.

        Args:
            job: A `Job`.
            inputs: What it starts from: a dict from the names of arguments to lists of files, bytes.
            on_step: Function of the number of the step, from 1, and the latents. The job stops where it returns False.

        Returns:
            The images, uint8 (b, h, w, 3), and the settings of each, for its file.
        """
        model, call = self._use(job.model), dict(job.arguments)
        loras = {row["name"]: row["scale"] for row in call.pop("loras", ())}
        if call.get("prompt_weighting"):
            call["prompt"], tagged = take_loras("prompt", call["prompt"])
            loras |= tagged
        self._adapters.require(loras)
        self._fuse(model, loras)
        self._teach(model, call["prompt"], call.get("negative_prompt", ""))
        start = {name: [open_image(name, content) for content in contents] for name, contents in inputs.items()}
        if controls := self._steer(model, call, start):
            call["control"] = controls
        images = getattr(model, job.task)(
            **start, **call, callback=lambda step, _, latents: on_step(step, latents), verbose=0
        )
        return images, job_settings.settings(job.arguments, model, images.shape, self._about(job.model), __version__)

    def preview(self, latents):
        """Returns rough images of latents, uint8 (b, h, w, 3)."""
        return self._models[self.loaded].preview(latents)

    def decode(self, latents):
        """Returns the images of latents, uint8 (b, h, w, 3)."""
        return self._models[self.loaded].decode(latents)

    def unload(self):
        """Frees the memory of the model."""
        if self.loaded:
            self._models[self.loaded].unload(discard=True)
        self.loaded, self._controlnets = None, {}

    def _use(self, name):
        """Returns a model; the one that was in memory goes."""
        from keras_diffusion import StableDiffusion

        if self.loaded not in (None, name):
            self.unload()
        if name not in self._models:
            self._models[name] = StableDiffusion(preset=self._paths[name], **self._options)
            if self._tiny_vae:
                try:
                    self._models[name].load_tiny_vae(self._tiny_vae)
                except CheckpointMismatchError as error:  # it is for another of the models
                    logger.warning("Previews of %s are rough. %s", name, error)
        self.loaded = name
        return self._models[name]

    def _about(self, name):
        path, dtype = self._paths[name], self._options["dtype"]
        about = {"Model": name, "Model hash": presets.model_hash(path), "Precision": dtype or "float32"}
        return {key: value for key, value in about.items() if value}

    def _fuse(self, model, loras):
        """Gives a model these LoRAs, a dict from names to scales, and no others."""
        paths = self._adapters.loras()
        for name in model.loras.keys() - loras.keys():
            model.unload_lora(name)
        for name, scale in loras.items():
            if name in model.loras:
                model.set_lora_scale(name, scale)
            else:
                model.load_lora(paths[name], scale, name)

    def _steer(self, model, call, start):
        """Returns the `control` of a call, whose `controls` and images it takes; other ControlNets leave the memory."""
        rows, images, paths = call.pop("controls", ()), start.pop("control", ()), self._adapters.controlnets()
        given = start["image"][0].size if "image" in start else (model.img_width, model.img_height)
        size = call.get("img_height", given[1]), call.get("img_width", given[0])
        loaded = {name: network for name, network in self._controlnets.items() if name in {row["name"] for row in rows}}
        for row in rows:
            if row["name"] not in loaded:
                loaded[row["name"]] = model.load_controlnet(paths[row["name"]])
        self._controlnets = loaded
        scaled = [
            read_images("control", image, size, row["resize"]) / np.float32(255)
            for row, image in zip(rows, images, strict=True)
        ]
        return [
            (loaded[row["name"]], image, row["scale"], row["start"], row["end"])
            for row, image in zip(rows, scaled, strict=True)
        ]

    def _teach(self, model, *prompts):
        """Teaches a model the embeddings that prompts name."""
        known = {word.lower() for word in model.tokenizer.added_tokens}
        for name, path in self._adapters.embeddings_in(*prompts).items():
            if name.lower() not in known:
                model.load_textual_inversion(path, name)


def _describe(name, path):
    from keras_diffusion.sampling.defaults import find_defaults
    from keras_diffusion.sampling.scheduler_config import from_scheduler_config

    found = presets.read(path)
    sampler, schedule = from_scheduler_config(found.scheduler_config)
    steps, guidance = find_defaults(found.architecture, sampler, schedule, Path(str(path)).name)
    side, factor = found.architecture.image_size, found.architecture.autoencoder.factor
    return Description(name, steps, guidance, sampler, schedule.get("spacing"), side, side, factor)
