"""Compiles and runs the stages on the active backend, which only this module and those it calls may name.

A stage is a function of a network and of arrays. Whatever may differ between two images of the same size (prompt,
seed, sampler, number of steps, guidance) is an array, so that nothing is compiled twice.
"""

import gc
import threading
import zlib
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import keras
import numpy as np
from keras import ops

from keras_diffusion.engines import strips
from keras_diffusion.engines.choice import FROZEN, USUAL, WAYS, faster, keep, pick
from keras_diffusion.errors import NumericalError
from keras_diffusion.memory import trim
from keras_diffusion.networks.diffusion_model import timestep_embedding
from keras_diffusion.networks.operations import computing
from keras_diffusion.sampling.solvers import HISTORY


def encode(network, tokens):
    """Tokens (b, n) → context (b, n, d)."""
    return ops.cast(network(with_positions(tokens)), "float32")


def encode_skipping(network, tokens, clip_skip):
    """Tokens (b, n) → context (b, n, d) without the last blocks, see `TextEncoder.skip`."""
    return ops.cast(network.skip(with_positions(tokens), clip_skip), "float32")


def with_positions(tokens):
    return [tokens, ops.broadcast_to(ops.arange(tokens.shape[1], dtype="int32"), tokens.shape)]


def encode_image(network, image):
    """Images (b, h, w, 3) in [-1, 1] → latents."""
    return ops.cast(network(image), "float32")


class Rows(NamedTuple):
    """Some rows of a sampler's table, k of them.

    Args:
        columns: (k, columns), see `samplers`.
        levels: (k, 2), the share of signal and of noise in the latents after each row.
        embeddings: (k, frequencies), of the timesteps.
        noise: (k, b, h, w, c), unit noise for the rows that add some.
        scales: (k, n), how much each of n ControlNets has a say, for a network that takes them.
    """

    columns: Any
    levels: Any
    embeddings: Any
    noise: Any
    scales: Any = None


class Conditions(NamedTuple):
    """What latents (b, h, w, c) are drawn from, the same in every row. None leaves out the computation.

    Args:
        context: (b, n, d), or (2b, n, d) with the negative prompts first, for guidance.
        guidance: (b,), how far to go from the negative prompt to the prompt (Ho & Salimans 2022, equation 6).
        rescale: (b,), how far to bring the deviation of a guided prediction back to that of the prompt's own (Lin et
            al. 2023, equations 15 and 16).
        extra: (b, h, w, k), what the network sees beside the latents.
        drawn: bool (b, h, w, 1), where latents are drawn; elsewhere they stay those of `known`.
        known: (b, h, w, c), the latents of a picture.
        noise: (b, h, w, c), the unit noise that covers them until the last row.
        controls: The image of each ControlNet, (b, height, width, 3) in [0, 1].
    """

    context: Any
    guidance: Any
    rescale: Any = None
    extra: Any = None
    drawn: Any = None
    known: Any = None
    noise: Any = None
    controls: Any = ()


def denoise(network, latents, history, count, rows, conditions, kept=()):
    """Runs the first `count` rows of a sampler's table.

    Args:
        network: The diffusion model.
        latents: (b, h, w, c), x_n.
        history: (HISTORY, b, h, w, c), the latest estimates h, newest first.
        count: How many of the rows to run.
        rows: `Rows`.
        conditions: `Conditions`.
        kept: What the network takes besides, and another one returned (see `deep_cache`).

    Returns:
        The new `latents` and `history`; then what a network returns beside its prediction, of the only row.
    """
    context, guidance, rescale, extra, drawn, known, known_noise, controls = conditions
    copies = context.shape[0] // latents.shape[0]

    def row_of(i, latents, history):
        _, p, q, a, d, *b = ops.unstack(rows.columns[i])
        seen = latents if extra is None else ops.concatenate([latents, extra], axis=-1)
        inputs = [seen, rows.embeddings[i][None], context]
        if controls:
            inputs += [rows.scales[i][None], *controls]
        prediction, *keep = keras.tree.flatten(network([*inputs, *kept]))
        prediction = ops.cast(prediction, "float32")
        if copies == 2:
            negative, positive = ops.split(prediction, 2)
            prediction = negative + _column(guidance) * (positive - negative)
            if rescale is not None:
                shrink = _deviation(positive) / ops.maximum(_deviation(prediction), keras.config.epsilon())
                prediction = prediction * (1.0 + _column(rescale) * (shrink - 1.0))
        history = ops.concatenate([(p * latents + q * prediction)[None], history[:-1]])
        latents = a * latents + d * rows.noise[i] + sum(b[j] * history[j] for j in range(HISTORY))
        if drawn is not None:
            alpha, sigma = ops.unstack(rows.levels[i])
            latents = ops.where(drawn, latents, alpha * known + sigma * known_noise)
        return latents, history, *keep

    if rows.columns.shape[0] == 1:
        return row_of(0, latents, history)
    return ops.fori_loop(0, count, lambda i, state: row_of(i, *state), (latents, history))


def _column(x):
    return ops.reshape(x, (-1, 1, 1, 1))


def _deviation(x):
    return ops.std(x, axis=(1, 2, 3), keepdims=True)


def _tensors(structure):
    return keras.tree.map_structure(lambda x: None if x is None else ops.convert_to_tensor(x), structure)


def decode(network, latents):
    """Latents → images (b, h, w, 3) in 0…255, not yet rounded."""
    return (ops.clip(ops.cast(network(latents), "float32"), -1.0, 1.0) + 1.0) * 127.5


def decode_in_strips(network, latents):
    """The same with less memory, see `strips`."""
    return decode(partial(strips.decode, network), latents)


ONLY_ON_BACKENDS = (encode_skipping, decode_in_strips)  # they ask more of a network than its output
IN_STRIPS = ("eager",)  # ways where strips cost nothing: elsewhere each is more to compile


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
            compiles nothing.
        strips: Whether images are decoded in strips of rows, the same image in less memory: True, False, or "auto", for
            eager torch alone.
    """

    def __init__(self, jit_compile="auto"):
        if jit_compile not in (True, False, "auto", "openvino"):
            raise ValueError(
                "`jit_compile` must be True, False, 'auto' or 'openvino'. "
                f"Received: jit_compile={repr(jit_compile)[:200]}"
            )
        if jit_compile == "openvino" and not find_spec("openvino"):
            raise ImportError(
                "`jit_compile='openvino'` needs the package openvino; install it with: pip install openvino. "
                "Received: jit_compile='openvino'"
            )
        keep()
        self.jit_compile = jit_compile
        self.compilations = 0
        self.strips = "auto"
        self._ways = WeakKeyDictionary()
        self._compiled = {}
        self._weights = WeakKeyDictionary()
        self._lock = threading.Lock()

    def __reduce__(self):
        """What is copied or pickled compiles anew."""
        return type(self), (self.jit_compile,)

    def unload(self):
        """Lets go of everything compiled, and of the networks."""
        with self._lock:
            self._compiled.clear()
            self._weights.clear()
            self._ways.clear()
        gc.collect()
        trim()

    def way(self, network, shape):
        """How a network is run on an input of a shape (b, …): a name in `choice.WAYS`."""
        ways = self._ways.setdefault(network, {})
        if shape not in ways:
            ways[shape] = pick(self.jit_compile, network, shape)
        return ways[shape]

    def run(self, stage, network, *inputs):
        """Runs `stage(network, *inputs)`, compiled; (tuples of) NumPy arrays and backend tensors in, tensors out."""
        way = self.way(network, tuple(inputs[0].shape))
        if stage in ONLY_ON_BACKENDS and way == "openvino":
            way = USUAL[keras.backend.backend()]
        with self._lock:
            place = stage, network.name, way  # a steered diffusion model leaves the plain one what was compiled for it
            compiled_for, compiled = self._compiled.get(place, (None, None))
            if compiled_for is not network:
                compiled = WAYS[way](stage, network, self._traced)
                self._compiled[place] = network, compiled
        with computing(**faster(way)):
            return compiled(*_tensors(inputs))

    def _traced(self):
        self.compilations += 1

    def _forget_stale(self, network, shape):
        """Has a network compiled again that had other weights, where a compiled graph does not look them up."""
        if self.way(network, shape) in FROZEN:
            weights = checksum(network)
            with self._lock:
                if self._weights.get(network) != weights:
                    self._compiled = {place: pair for place, pair in self._compiled.items() if pair[0] is not network}
                    self._weights[network] = weights

    def encode(self, text_encoder, tokens, clip_skip=0):
        """Tokens (b, n) → context, a float32 array (b, n, d), without the last `clip_skip` blocks."""
        self._forget_stale(text_encoder, tokens.shape)
        stage, *inputs = (encode_skipping, tokens, np.int32(clip_skip)) if clip_skip else (encode, tokens)
        return finite("text encoding", self.run(stage, text_encoder, *inputs))

    def encode_image(self, image_encoder, image):
        """Images (b, h, w, 3) in [-1, 1] → latents, a float32 array (b, h/f, w/f, c)."""
        self._forget_stale(image_encoder, image.shape)
        return finite("image encoding", self.run(encode_image, image_encoder, image.astype("float32")))

    def decode(self, decoder, latents):
        """Latents → images, a uint8 array (b, h, w, 3)."""
        self._forget_stale(decoder, latents.shape)
        in_strips = self.way(decoder, latents.shape) in IN_STRIPS if self.strips == "auto" else self.strips
        stage = decode_in_strips if in_strips else decode
        trim()
        return finite("decoding", self.run(stage, decoder, latents)).round().astype("uint8")

    def denoise(
        self, diffusion_model, latents, conditions, table, step_noise, rows_per_call=1, scales=None, guided=None,
        shallow=None, deep=None,
    ):  # fmt: skip
        """Runs a sampler's table, yielding after every step.

        Args:
            diffusion_model: The network.
            latents: float32 (b, h, w, c), where the table starts.
            conditions: `Conditions`, of float32 arrays.
            table: A `samplers.Table`.
            step_noise: Function of an array of k steps that returns unit noise (k, b, h, w, c).
            rows_per_call: How many rows one call runs: 1 to see every one, more to leave them to one graph. The
                result is the same.
            scales: (rows, n), how much each ControlNet has a say in every row, for a steered network.
            guided: bool (rows,), which rows follow the guidance; the others take the prompt alone, in half the time
                but with OpenVINO, which would compile for it. None guides all.
            shallow: The network for rows that are not deep, where `diffusion_model` is whole, see `deep_cache.split`.
            deep: bool (rows,), which rows run the whole network; the first one, and each that is guided otherwise than
                the row before it. None: all.

        Yields:
            (step, timestep, latents): the number of the step just run, from 0, its timestep, and the latents after it,
            a float32 array.

        Raises:
            NumericalError: If the latents are not finite.
        """
        trim()
        count = len(table.rows)
        guided, deep = (np.ones(count, bool) if which is None else which for which in (guided, deep))
        for network in filter(None, (diffusion_model, shallow)):
            self._forget_stale(network, latents.shape)
        network_alone = self.way(diffusion_model, latents.shape) in FROZEN
        if network_alone or shallow or not guided.all():  # the rest is outside, or not all rows are alike
            rows_per_call = 1
        frequencies = diffusion_model.architecture.diffusion_model.frequencies
        columns = table.rows.astype("float32")
        levels = np.stack([table.alphas, table.sigmas], axis=-1)[1:].astype("float32")
        levels[-1] = 1.0, 0.0  # what is known ends as it was, also where a sampler leaves a trace of noise
        embeddings = timestep_embedding(table.rows[:, 0], frequencies)
        quiet = ops.zeros((rows_per_call, *latents.shape))
        history = ops.zeros((HISTORY, *latents.shape))
        conditions = _tensors(conditions)
        unguided = conditions._replace(context=conditions.context[-len(latents) :], rescale=None)
        if network_alone:  # it is compiled for one shape: the negative prompts stay, and have no say
            unguided = conditions._replace(guidance=ops.ones_like(conditions.guidance), rescale=None)
        for first in range(0, count, rows_per_call):
            index = np.arange(first, first + rows_per_call).clip(max=count - 1)
            noise = step_noise(table.steps[index]) if table.stochastic else quiet
            rows = Rows(columns[index], levels[index], embeddings[index], noise)
            if scales is not None:
                rows = rows._replace(scales=scales[index])
            here = np.int32(min(rows_per_call, count - first))
            given = conditions if guided[first] else unguided
            if deep[first]:
                latents, history, *kept = self.run(denoise, diffusion_model, latents, history, here, rows, given)
            else:
                given = given._replace(controls=())
                latents, history = self.run(denoise, shallow, latents, history, here, rows, given, tuple(kept))
            step, timestep = table.steps[index[-1]], table.rows[index[-1], 0]
            current = finite(f"denoising step {step + 1}", latents)
            if step not in table.steps[index[-1] + 1 :]:  # some solvers take two rows for a step
                yield int(step), float(timestep), current


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
