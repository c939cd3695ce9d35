"""Compiles and runs the stages on the active backend, which only the modules of this folder may name."""

import gc
import threading
import zlib
from functools import partial
from importlib.util import find_spec
from typing import Literal
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from keras_diffusion.engines.choice import (
    ADDRESS_WEIGHTS,
    DEFAULT_RUNNERS,
    HOLD_WEIGHTS,
    KEPT_SHAPES,
    choose_runner,
    device,
    load_runner,
    replaced_operations,
    rows_at_once,
    warn_of_one_device,
    weight_addresses,
)
from keras_diffusion.engines.compile_cache import use_compile_cache
from keras_diffusion.engines.stages import (
    decode,
    decode_in_strips,
    denoise,
    denoise_with_images,
    encode,
    encode_image,
    encode_image_prompt,
    encode_skipping,
    upscale,
)
from keras_diffusion.errors import NumericalError
from keras_diffusion.networks.controlnet import with_controlnets
from keras_diffusion.networks.decoder import Decoder
from keras_diffusion.networks.deep_cache import deep_and_shallow
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.operations import replace_operations
from keras_diffusion.sampling.recurrence import HISTORY
from keras_diffusion.system.memory import trim
from keras_diffusion.system.processes import require_own_process

JitCompile = bool | Literal["auto", "openvino"]
# They ask more of a network than its output, or are of networks that OpenVINO does not know.
ONLY_ON_BACKENDS = (encode_skipping, decode_in_strips, denoise_with_images, upscale)
KEPT_MADE = 2  # networks with ControlNets, so that two may alternate; each keeps its ControlNets in memory
RUN_SELDOM = (encode_image_prompt,)  # of networks that take longer to compile than to run once for each image
# Runners and kinds of device where strips cost nothing: elsewhere each is more to compile, or to launch.
IN_STRIPS = {("eager", "cpu")}


class Engine:
    """Runs the stages for one object, compiling each for the network it is given.

    Args:
        jit_compile: True for XLA on TensorFlow and `torch.compile` on torch; False for TensorFlow's plain graph and
            eager torch. JAX compiles in any case. "openvino" has OpenVINO run the networks on the processor,
            whatever the backend; each is compiled for one shape at a time, and again when its weights have changed.
            "auto" compiles where there is much to compute, as the table `choice.AUTO` says, and is
            False elsewhere.

    Attributes:
        compilations: How many times a stage was compiled, once for each network, image size and batch size; eager torch
            compiles nothing. Of the sizes of each stage, the latest `choice.KEPT_SHAPES` stay compiled.
        strips: Whether images are decoded in strips of rows, the same image in less memory: True, False, or "auto", for
            eager torch on a processor alone.
    """

    def __init__(self, jit_compile="auto"):
        if not isinstance(jit_compile, bool | str) or jit_compile not in (True, False, "auto", "openvino"):
            raise ValueError(
                f"`jit_compile` must be True, False, 'auto' or 'openvino'. Received: jit_compile={jit_compile!r:.200}"
            )
        if jit_compile == "openvino" and not find_spec("openvino"):
            raise ImportError(
                "`jit_compile='openvino'` needs the package openvino; install it with: pip install openvino. "
                "Received: jit_compile='openvino'"
            )
        require_own_process()
        use_compile_cache()
        warn_of_one_device()
        self.jit_compile = jit_compile
        self.compilations = 0
        self.strips = "auto"
        self._runners = WeakKeyDictionary()
        self._compiled = {}
        self._made = {}
        self._weights = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __reduce__(self):
        """Lets a copy or a pickle start with nothing compiled."""
        return type(self), (self.jit_compile,)

    def unload(self):
        """Lets go of everything compiled or made, and of the networks."""
        with self._lock:
            self._compiled.clear()
            self._made.clear()
            self._weights.clear()
            self._runners.clear()
        gc.collect()
        trim()

    def make_once(self, make, *given):
        """Returns `make(*given)`. The engine keeps the latest `KEPT_MADE` that a function made, until `unload`."""
        kept = self._made.get(make, [])
        pair = next((pair for pair in kept if pair[0] == given), None) or (given, make(*given))
        self._made[make] = [*(other for other in kept if other is not pair), pair][-KEPT_MADE:]  # the latest last
        return pair[1]

    def _networks(self, diffusion_model, controlnets, all_deep):
        """The network of the deep rows, and that of the others or None; both include the ControlNets."""
        if not all_deep:
            return self.make_once(deep_and_shallow, diffusion_model, controlnets)
        return self.make_once(with_controlnets, diffusion_model, controlnets) if controlnets else diffusion_model, None

    def runner(self, network, shape):
        """Returns the runner of a network for an input of a shape (b, …): a name in `choice.RUNNERS`."""
        runners = self._runners.setdefault(network, {})
        if shape not in runners:
            runners[shape] = choose_runner(self.jit_compile, network, shape)
        return runners[shape]

    def _runner_of(self, stage, network, shape):
        runner = self.runner(network, shape)
        if stage in RUN_SELDOM or (stage in ONLY_ON_BACKENDS and runner == "openvino"):
            return DEFAULT_RUNNERS[keras.backend.backend()]
        return runner

    def run(self, stage, network, *inputs):
        """Runs `stage(network, *inputs)`, compiled; (tuples of) NumPy arrays and backend tensors in, tensors out."""
        runner = self._runner_of(stage, network, tuple(inputs[0].shape))
        shapes = _shapes(inputs) if runner in KEPT_SHAPES else None
        with self._lock:
            place = stage, network.name, runner, id(network)
            if place not in self._compiled:
                self._drop_replaced(*place[:3])
                self._compiled[place] = network, {}
            _, programs = self._compiled[place]
            compiled = programs.pop(shapes, None) or load_runner(runner)(stage, network, self._traced)
            programs[shapes] = compiled  # the latest last
            if len(programs) > KEPT_SHAPES.get(runner, 1):
                del programs[next(iter(programs))]
        with keras_settings(), replace_operations(**replaced_operations(runner)):
            return compiled(*_tensors(inputs))

    def _drop_replaced(self, *place):
        """Lets go of what was compiled for other networks in a place, unless the engine made and keeps them."""
        made = [network for pairs in self._made.values() for _, network in pairs]
        kept = {id(network) for network in keras.tree.flatten(made)}
        for other in [x for x in self._compiled if x[:3] == place and x[3] not in kept]:
            del self._compiled[other]

    def require_backend(self, name):
        """Raises a ValueError about an option that OpenVINO cannot follow, if that is to run everything."""
        if self.jit_compile == "openvino":
            raise ValueError(f"OpenVINO cannot follow `{name}`; choose another `jit_compile`. Received: 'openvino'")

    def _traced(self):
        self.compilations += 1

    def _forget_stale(self, network, shape):
        """Has a network compiled again that had other weights, where a compiled graph does not look them up."""
        runner = self.runner(network, shape)
        if runner in HOLD_WEIGHTS or runner in ADDRESS_WEIGHTS:
            weights = checksum(network) if runner in HOLD_WEIGHTS else weight_addresses(runner, network)
            with self._lock:
                if self._weights.get(network) != weights:
                    self._compiled = {place: pair for place, pair in self._compiled.items() if pair[0] is not network}
                    self._weights[network] = weights

    def encode(self, text_encoder, tokens, clip_skip=0):
        """Tokens (b, n) → context, a float32 array (b, n, d), without the last `clip_skip` blocks.

        A text encoder of SDXL gives a list: that, and the pooled vector (b, p).
        """
        self._forget_stale(text_encoder, tokens.shape)
        stage, *inputs = (encode_skipping, tokens, np.int32(clip_skip)) if clip_skip else (encode, tokens)
        return keras.tree.map_structure(partial(finite, "text encoding"), self.run(stage, text_encoder, *inputs))

    def encode_image(self, image_encoder, image):
        """Images (b, h, w, 3) in [-1, 1] → latents, a float32 array (b, h/f, w/f, c)."""
        self._forget_stale(image_encoder, image.shape)
        return finite("image encoding", self.run(encode_image, image_encoder, image.astype("float32")))

    def encode_image_prompt(self, network, x):
        """Runs a vision encoder or an IP-Adapter on its input; returns float32 arrays."""
        self._forget_stale(network, x.shape)
        outputs = self.run(encode_image_prompt, network, x.astype("float32"))
        return keras.tree.map_structure(partial(finite, "encoding of the image prompt"), outputs)

    def forget(self, networks):
        """Lets go of what was compiled for some networks."""
        with self._lock:
            kept = {place: pair for place, pair in self._compiled.items() if not any(pair[0] is x for x in networks)}
            self._compiled = kept

    def decode(self, decoder, latents):
        """Latents → images, a uint8 array (b, h, w, 3)."""
        self._forget_stale(decoder, latents.shape)
        if (in_strips := self.strips) == "auto":
            in_strips = (self.runner(decoder, latents.shape), device()) in IN_STRIPS
        stage = decode_in_strips if in_strips and isinstance(decoder, Decoder) else decode
        trim()
        return finite("decoding", self.run(stage, decoder, latents)).round().astype("uint8")

    def upscale(self, network, images):
        """Images (b, h, w, 3) in [0, 1] → larger ones, float32."""
        self._forget_stale(network, images.shape)
        return finite("upscaling", self.run(upscale, network, images.astype("float32")))

    def denoise(self, diffusion_model, latents, conditions, plan, rows_per_call=1, controlnets=(), history=None):
        """Runs a sampler's table, yielding after every step.

        Args:
            diffusion_model: The network, a `DiffusionModel` if there are ControlNets or rows that are not deep.
            latents: float32 (b, h, w, c), where the table starts.
            conditions: `Conditions`, of float32 arrays.
            plan: A `Plan`.
            rows_per_call: How many rows one call runs: 1 to see every one, more to leave them to one graph, None for
                as many as suit the runner. The result is the same.
            controlnets: A tuple of n `ControlNet`, whose images are `conditions.controls`.
            history: The latest estimates, as another call returned them; None for the first.

        Yields:
            (step, timestep, latents): the number of the step just started, from 0, its timestep, and the latents after
            it, a float32 tensor of the backend. Nobody waits for a step until the next one has been started too, so
            that a GPU never waits for Python.

        Returns:
            The last latents, and the history for the next call.

        Raises:
            NumericalError: If latents are not finite, one step later or at the end.
        """
        trim()
        network, shallow = self._networks(diffusion_model, controlnets, plan.all_deep)
        for each in filter(None, (network, shallow)):
            self._forget_stale(each, latents.shape)
        stage = denoise_with_images if conditions.images else denoise
        runner = self._runner_of(stage, network, latents.shape)
        network_alone = runner in HOLD_WEIGHTS
        if network_alone or not plan.alike:  # the loop is outside
            rows_per_call = 1
        rows_per_call = rows_per_call or rows_at_once(runner)
        history = ops.zeros((HISTORY, *latents.shape), "float32") if history is None else history
        conditions = _tensors(conditions)
        pairs = _tensors(plan.texts[0]) if plan.texts else [(conditions.context, conditions.added)]
        versions = [conditions._replace(context=context, added=added) for context, added in pairs]
        # OpenVINO compiles for one shape, and several prompts need the negative one: it stays, and without effect.
        unguided = _unguided_alike if network_alone or conditions.weights is not None else _unguided
        previous = None
        for call in plan.calls(rows_per_call, latents.shape, diffusion_model.architecture.diffusion_model.frequencies):
            given = versions[call.text] if call.guided else unguided(versions[call.text], len(latents))
            state = latents, history, call.count, call.rows
            if call.deep:
                latents, history, *kept = self.run(stage, network, *state, given)
            else:
                latents, history = self.run(stage, shallow, *state, given._replace(controls=()), tuple(kept))
            current = f"denoising step {call.step + 1}", latents, ops.all(ops.isfinite(latents))
            _require_finite(previous)
            previous = current
            if call.ends_step:
                yield call.step, call.timestep, latents
        _require_finite(previous)
        return latents, history


def _unguided(conditions, count):
    """The conditions of `count` latents for their prompts alone."""
    context, added = (None if x is None else x[-count:] for x in (conditions.context, conditions.added))
    images = conditions.images
    images = images and images._replace(pairs=tuple(x[-count:] for x in images.pairs))
    shares = None if conditions.shares is None else conditions.shares[-count:]
    return conditions._replace(context=context, added=added, rescale=None, images=images, shares=shares)


def _unguided_alike(conditions, count):
    """The same in the same shapes, with the negative prompts."""
    return conditions._replace(guidance=ops.ones_like(conditions.guidance), rescale=None)


def _require_finite(row):
    """Raises an error if the latents of a row are not finite; waits until they have been computed."""
    if row:
        stage, latents, flag = row
        if not bool(ops.convert_to_numpy(flag)):
            finite(stage, latents)


def _shapes(structure):
    return tuple(x if x is None else np.shape(x) for x in keras.tree.flatten(structure))


def _tensors(structure):
    return keras.tree.map_structure(lambda x: None if x is None else ops.convert_to_tensor(x), structure)


def checksum(network):
    """A number that changes with the weights of a network."""
    value = 0
    for variable in network.variables:
        array = ops.convert_to_numpy(variable)
        value = zlib.crc32(array.ravel("K").view("uint8"), value)  # as it lies in memory: to turn it takes time
    return value


def finite(stage, tensor):
    """Returns the tensor as a NumPy array, or says which stage went wrong."""
    array = ops.convert_to_numpy(tensor)
    if not np.isfinite(array).all():
        raise NumericalError(
            f"{stage.capitalize()} gave values that are not finite: {np.isfinite(array).mean():.1%} of them are. "
            "This happens when half precision overflows or a weight is damaged; try dtype='float32'."
        )
    return array
