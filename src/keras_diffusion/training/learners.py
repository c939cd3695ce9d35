"""Defines what can be trained in a model; each is a layer that predicts as the model does and owns what it trains."""

from contextlib import contextmanager
from contextvars import copy_context

import keras
from keras import ops

from keras_diffusion import arguments
from keras_diffusion.networks.int8 import is_int8
from keras_diffusion.networks.operations import operation, replace_operations
from keras_diffusion.training import losses
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.rematerialization import rematerialized


class Learner(keras.layers.Layer):
    """Predicts the noise or velocity with the networks of a model, which it freezes.

    Args:
        model: The `StableDiffusion`.

    Call arguments:
        inputs: A dict, see `Trainer`.

    Returns:
        The prediction (b, h, w, c).

    Attributes:
        model: The `StableDiffusion`.
        tokenizer: The tokenizer of the captions.
        text: What the learner takes of captions, "context" or "tokens".
        takes_added: Whether it takes the pooled vectors and size ids of SDXL.
        conditioned: Whether it takes an image with each example, as a ControlNet.
        learning_rate: A rate that suits it.
        drawn_from: The class of its examples.
        loss: Function of what the learner returns, what it should be, and weights (b,).
        rematerialize: Whether the backward pass computes blocks again, see `rematerialization`. By default it does if
            weights are stored in half precision: else a copy of every one in full precision would be kept for it.
    """

    text = "context"
    takes_added = conditioned = False
    learning_rate = 1e-4
    drawn_from = Examples
    loss = staticmethod(losses.mean_squared_error)

    def __init__(self, model):
        super().__init__(dtype="float32", name=type(self).__name__.lower())
        shape = model.architecture
        if shape.diffusion_model.in_channels != shape.autoencoder.latent_channels:
            raise ValueError(
                "A model for inpainting cannot be trained; give one whose diffusion model takes latents alone. "
                f"Received: {shape.diffusion_model.in_channels} input channels"
            )
        if shape.diffusion_model.added and (self.text == "tokens" or not self.takes_added):
            raise ValueError(
                "Of SDXL, a LoRA or the diffusion model can be trained, without text encoders. "
                f"Received: {type(self).__name__} of a model of {shape.name!r}"
            )
        if shape.diffusion_model.guidance_width:
            raise ValueError(
                "A model that was distilled with its guidance, as LCM, cannot be trained; train the model that it was "
                f"made from. Received: a model of {shape.name!r}"
            )
        self.model, self.tokenizer = model, model.tokenizer
        policy = model.diffusion_model.layers[-1].dtype_policy
        self.rematerialize = "float16" in policy.variable_dtype and policy.compute_dtype != policy.variable_dtype
        for network in self.networks():
            if is_int8(network):
                raise ValueError(
                    "A model with weights in int8 cannot be trained; build it with another `dtype`. "
                    f"Received: weights of {network.name} in int8"
                )
            network.trainable = False

    def networks(self):
        """The networks of the model that a step computes; a checkpoint of the training need not hold their weights."""
        return [self.model.diffusion_model, *([self.model.text_encoder] if self.text == "tokens" else [])]

    @property
    def input_names(self):
        """What `call` takes, a list of names."""
        added = ["added"] * bool(self.takes_added and self.model.architecture.diffusion_model.added)
        return ["latent", "timestep_embedding", self.text, *["image"] * self.conditioned, *added]

    def encode(self, tokens):
        """Turns tokens (b, n) into a context (b, n, width)."""
        return self.model.text_encoder([tokens, ops.arange(tokens.shape[1], dtype="int32")[None]])

    def require_captions(self, images):
        """Raises an error if it cannot learn from the captions of `images`, a list of `folder.Record`."""

    def predict(self, latent, timestep, context, inputs):
        """Predicts from what the diffusion model takes; `inputs` holds everything."""
        added = [inputs["added"]] if "added" in self.input_names else []
        return self.model.diffusion_model([latent, timestep, context, *added])

    def tensors(self):
        """Returns tensors that are computed from the trained variables, by the ids of the kernels they belong to."""
        return {}

    @contextmanager
    def applied(self, tensors):
        """Has the layers that are called inside compute what is trained, with those of `tensors` that are theirs."""
        yield

    def call(self, inputs, training=False):
        return self.prediction(inputs)

    def prediction(self, inputs, tensors=None):
        """Predicts with what is trained, or other `tensors`: what is inside is kept for the backward pass."""
        with quick_to_trace():
            tensors, outside = tensors or self.tensors(), copy_context()
            blocks = {"block": rematerialized(self.applied, tensors, outside)} if self.rematerialize else {}
            with replace_operations(**blocks), self.applied(tensors):
                context = self.encode(inputs["tokens"]) if self.text == "tokens" else inputs["context"]
                return self.predict(inputs["latent"], inputs["timestep_embedding"], context, inputs)

    def update_model(self):
        """Puts what was learned into the model that draws."""

    def reset_model(self):
        """Takes it out again, before the training goes on."""

    @contextmanager
    def apart(self):
        """Has the model draw without what was learned, as long as it lasts."""
        yield


class WholeModel(Learner):
    """Trains every weight of the diffusion model.

    Args:
        model: The `StableDiffusion`.
        text_encoder: Whether to train the text encoder too.
    """

    learning_rate = 1e-5  # examples/text_to_image/train_text_to_image.py of diffusers
    takes_added = True

    def __init__(self, model, text_encoder=False):
        self.text = "tokens" if arguments.boolean("text_encoder", text_encoder) else "context"
        super().__init__(model)
        if model.loras:
            raise ValueError(
                "Weights with LoRAs in them would lose what they learn when a LoRA is taken out; call `unload_lora` "
                f"first. Received: a model with {[*model.loras]!r:.200}"
            )
        self.trained = self.networks()
        for network in self.trained:
            require_full_precision(network)
            network.trainable = True


def quick_to_trace():
    """Replaces operations by those that TensorFlow has to trace less for."""
    return replace_operations(group_norm=group_norm, project=flat(operation("project")))


def flat(project):
    """Returns an operation "project" that flattens x (…, c) first: of more axes, TensorFlow computes the shapes."""

    def compute(layer, x):
        *others, width = x.shape
        if len(others) == 1:
            return project(layer, x)
        result = project(layer, ops.reshape(x, (-1, width)))
        others = ops.shape(x)[:-1] if others.count(None) > 1 else [-1 if side is None else side for side in others]
        return ops.reshape(result, (*others, result.shape[-1]))

    return compute


def group_norm(layer, x):
    """Normalises as the layer does, from the moments of groups at once, in half as many operations to trace."""
    _, height, width, channels = ops.shape(x)
    grouped = ops.reshape(x, (-1, height * width, layer.groups, channels // layer.groups))
    centred = grouped - ops.mean(grouped, axis=(1, 3), keepdims=True)
    variance = ops.mean(ops.square(centred), axis=(1, 3), keepdims=True)
    x = ops.reshape(centred * ops.rsqrt(variance + layer.epsilon), (-1, height, width, channels))
    gamma, beta = (ops.cast(weight, "float32") for weight in (layer.gamma, layer.beta))
    return ops.cast(operation("modulate")(x, gamma, beta, layer.silu), layer.compute_dtype)


def require_full_precision(network):
    """Raises an error if the weights of a network are stored in half precision."""
    if "float16" in (stored := network.variables[0].dtype):
        raise ValueError(
            "Weights in half precision cannot be trained, as small steps round to nothing; build the model "
            f"with dtype='float32' or 'mixed_{stored}'. Received: weights in {stored}"
        )
