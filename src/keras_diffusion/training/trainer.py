"""Trains a model: `compile` and `fit`, as any Keras model."""

import keras

from keras_diffusion import arguments as check
from keras_diffusion.engines import choice
from keras_diffusion.training.controlnet import TrainedControlNet
from keras_diffusion.training.dataset import Examples
from keras_diffusion.training.embedding import Embedding
from keras_diffusion.training.fitting import Watch, require_data, require_weights_only
from keras_diffusion.training.folder import records
from keras_diffusion.training.lcm import LcmLora
from keras_diffusion.training.learners import WholeModel
from keras_diffusion.training.lora import Lora
from keras_diffusion.training.memory import estimate
from keras_diffusion.training.optimizers import default_optimizer

LEARNERS = {
    "lora": Lora,
    "diffusion_model": WholeModel,
    "embedding": Embedding,
    "controlnet": TrainedControlNet,
    "lcm_lora": LcmLora,
}
NEVER = 2**31 - 1  # steps after which a loss scale would grow


class Trainer(keras.Model):
    """Trains a part of a `StableDiffusion`, the object that draws.

    Only what is trained gets gradients, and is in the files that `save_weights` and `ModelCheckpoint` write; everything
    else is frozen. A step whose gradients are not finite changes nothing, and `fit` stops at it.

    Args:
        model: The `StableDiffusion`.
        train: What to train: "lora", "diffusion_model", "embedding", "controlnet" or "lcm_lora".
        rematerialize: Whether the backward pass computes blocks of the networks again instead of keeping what is inside
            them (gradient checkpointing): less memory, a third more time. None does if weights are stored in half
            precision, so that no copies of them are kept.
        **options: Arguments of the `Lora`, `WholeModel`, `Embedding`, `TrainedControlNet` or `LcmLora`.

    Call arguments:
        inputs: A dict: "latent" (b, h, w, c), noisy; "timestep_embedding" (b, frequencies); "context" (b, n, width), or
            "tokens" (b, n) where the text encoder is trained; "image" (b, height, width, 3) for a ControlNet.

    Returns:
        The prediction (b, h, w, c).

    Attributes:
        learner: What is trained.

    Example:
        trainer = Trainer(model, train="lora", rank=8)
        trainer.compile(keras.optimizers.AdamW(1e-4))
        trainer.fit(trainer.examples("folder", "a photo of sks dog", batch_size=2), epochs=100)
        trainer.update_model()
        model.text_to_image("a photo of sks dog on the moon")
    """

    def __init__(self, model, train="lora", rematerialize=None, **options):
        super().__init__(dtype="float32", name="trainer")
        self.learner = LEARNERS[check.choice("train", train, LEARNERS)](model, **options)
        if rematerialize is not None:
            self.learner.rematerialize = check.boolean("rematerialize", rematerialize)
        self.built = True

    @property
    def _frozen(self):
        """The variables that a step uses but does not train; Keras would save them if they were an attribute."""
        owned = {id(variable) for variable in self.learner.variables}
        weights = [variable for network in self.learner.networks() for variable in network.variables]
        return [variable for variable in weights if id(variable) not in owned]

    @property
    def variables(self):
        """The trained variables, and the frozen ones that a step computes with."""
        return [*super().variables, *self._frozen]

    def examples(self, folder, caption=None, condition_folder=None, **options):
        """Reads a folder of images and captions, see `Examples.from_folder`, for what is trained."""
        learner = self.learner
        if learner.conditioned != (condition_folder is not None):
            raise ValueError(
                "A ControlNet takes a `condition_folder`, nothing else does. "
                f"Received: {condition_folder=!r:.200} for a {type(learner).__name__}"
            )
        learner.require_captions(records(folder, caption))
        options = {"text": learner.text, "tokenizer": learner.tokenizer, **options}
        return learner.drawn_from.from_folder(
            learner.model, folder, caption, condition_folder=condition_folder, **options
        )

    def compile(self, optimizer=None, jit_compile="auto", **options):
        """Sets the optimiser.

        Args:
            optimizer: An optimiser of Keras; None takes AdamW as diffusers' training scripts do: β 0.9 and 0.999,
                ε 1e-8, weight decay 1e-2, gradients clipped to a global norm of 1, and the learner's learning rate.
            jit_compile: Whether to compile the step with XLA, or with `torch.compile`. "auto" does on JAX.
            **options: Options of `keras.Model.compile`.
        """
        if wrong := {"loss", "loss_weights"} & options.keys():
            raise ValueError(
                f"The loss belongs to what is trained; `Examples` weights it. Received: {', '.join(sorted(wrong))}"
            )
        optimizer = keras.optimizers.get(optimizer or default_optimizer(self.learner.learning_rate))
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):  # it skips what is not finite
            half = self.learner.model.diffusion_model.layers[-1].compute_dtype == "float16"
            scale = {} if half else {"initial_scale": 1.0, "dynamic_growth_steps": NEVER}
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, **scale)
        jit_compile = choice.compiles_always() if jit_compile == "auto" else jit_compile
        super().compile(optimizer, jit_compile=jit_compile, **options)
        optimizer.build(self.trainable_variables)  # so that `load_weights` goes on with a training that was stopped

    @property
    def step(self):
        """The number of steps taken; `examples(first_step=…)` continues from there."""
        return int(keras.ops.convert_to_numpy(self.optimizer.iterations))

    def memory(self, batch_size=1, size=None):
        """Estimates the memory of a step of the training that was compiled, see `memory.estimate`.

        Args:
            batch_size: Number of images in a step, class images included.
            size: Their (height, width); None takes the model's.

        Returns:
            A `Memory`: bytes of weights, gradients, optimiser and activations, and their `total`.
        """
        model = self.learner.model
        size = size or (model.img_height, model.img_width)
        return estimate(self, batch_size, size, model.architecture.text_encoder.length)

    def call(self, inputs, training=False):
        given = inputs if isinstance(inputs, dict) else {}
        if missing := [name for name in self.learner.input_names if name not in given]:
            raise ValueError(
                "Give a trainer batches of its own `examples`; images are drawn by the model's `text_to_image`. "
                f"Received: inputs without {', '.join(missing)}"
            )
        return self.learner(inputs, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return self.learner.loss(y_pred, y, 1.0 if sample_weight is None else sample_weight)

    def fit(self, x=None, *arguments, callbacks=None, **options):
        """Trains, see `keras.Model.fit`; most often on `examples`.

        Between two steps, a callback can call `update_model` and draw.

        Raises:
            NumericalError: If the loss is not finite, at the step that made it. What is trained is as it was before.
        """
        require_data(x, options.get("batch_size"))
        watch = Watch(x, self.learner)
        watch.on_epoch_begin(None)  # Keras draws two batches to learn their shapes
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks.append(watch)
        else:
            callbacks = [watch, *(callbacks if isinstance(callbacks, list | tuple) else filter(None, [callbacks]))]
            require_weights_only(callbacks)
        if isinstance(x, Examples):
            options["shuffle"] = False  # they come in a random order of their own
        return super().fit(x, *arguments, callbacks=callbacks, **options)

    def make_train_function(self, force=False):
        self.learner.reset_model()
        return super().make_train_function(force)

    def evaluate(self, *arguments, **options):
        """Computes the loss of examples, see `keras.Model.evaluate`."""
        with self.learner.apart():
            return super().evaluate(*arguments, **options)

    def predict(self, *arguments, **options):
        """Predicts noise or velocity for examples, see `keras.Model.predict`; `text_to_image` of the model draws."""
        with self.learner.apart():
            return super().predict(*arguments, **options)

    def get_config(self):
        raise NotImplementedError(
            "A trainer cannot be saved as a whole: `save_weights` keeps a training, to go on with; `save_lora`, "
            "`save_textual_inversion`, `save_controlnet` and the model's `save_to_preset` keep what was learned."
        )

    def save(self, *arguments, **options):
        self.get_config()  # before Keras begins to write

    export = save

    def save_lora(self, path, format="kohya", metadata=None, dtype="float32"):
        """Writes the LoRA that was learned.

        Args:
            path: A new .safetensors file; for "peft" a new folder.
            format: "kohya" (also A1111, Forge, ComfyUI), "diffusers" or "peft". `load_lora` reads all of them.
            metadata: A dict of str that says more about a file of kohya's, such as {"ss_output_name": "dog"}.
            dtype: What the values are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If an argument is wrong, a value is not finite, or something else was trained.
        """
        self._learned(Lora).save(path, format, metadata, dtype)

    def save_textual_inversion(self, path, format="diffusers"):
        """Writes the embedding that was learned.

        Args:
            path: A new .safetensors file.
            format: "diffusers", which holds the word; or "webui" (A1111, Forge, ComfyUI), where the file's name is the
                word. `load_textual_inversion` reads both.

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If an argument is wrong, a value is not finite, or something else was trained.
        """
        self._learned(Embedding).save(path, format)

    @property
    def controlnet(self):
        """The `ControlNet` that is trained, for the `control` of a call."""
        return self._learned(TrainedControlNet).controlnet

    def save_controlnet(self, path, dtype="float32"):
        """Writes the ControlNet that was trained as a folder of diffusers, which `load_controlnet` reads too.

        Args:
            path: The folder; it must not exist yet.
            dtype: What the weights are stored in, "float32", "float16" or "bfloat16".

        Raises:
            FileExistsError: If there is something at `path`.
            ValueError: If an argument is wrong, a value is not finite, or something else was trained.
        """
        self._learned(TrainedControlNet).save(path, dtype)

    def _learned(self, kind):
        if not isinstance(self.learner, kind):
            name = next(name for name, cls in LEARNERS.items() if cls is kind)
            raise ValueError(f"Only train={name!r} has that. Received: a trainer of {type(self.learner).__name__}")
        return self.learner

    def update_model(self):
        """Puts what was learned into the model that draws. `fit` goes on from there."""
        self.learner.update_model()
