"""Trains an embedding: what a new word means (Gal et al. 2022, "textual inversion", arXiv:2208.01618)."""

import copy
import tempfile
from contextlib import contextmanager
from pathlib import Path

from keras import ops

from keras_diffusion import arguments
from keras_diffusion.checkpoints.adapters import textual_inversion
from keras_diffusion.networks.operations import operation, replace_operations
from keras_diffusion.system.locks import changing
from keras_diffusion.training.learners import Learner

TEMPLATES = [  # captions of an object, after `imagenet_templates_small` of rinongal/textual_inversion
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a bright photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a photo of one {}",
    "a good photo of a {}",
    "a photo of a nice {}",
    "a photo of a small {}",
    "a photo of a large {}",
]


class Embedding(Learner):
    """Trains the vectors of a new word; all weights of the model stay as they are.

    Args:
        model: The `StableDiffusion`.
        word: The new word, such as "<cat-toy>"; its case does not matter.
        initial_word: A word that says roughly the same, such as "toy". The vectors start as those of its tokens, each
            repeated if there are fewer.
        vectors: Number of vectors of the word. Each takes the place of one token in a prompt.

    Raises:
        TypeError, ValueError: If an argument is wrong, `word` is one token already, or `initial_word` has more tokens
            than `vectors`.
    """

    text = "tokens"
    learning_rate = 5e-4  # examples/textual_inversion of diffusers

    def __init__(self, model, word, initial_word, vectors=1):
        super().__init__(model)
        for name, text in (("word", word), ("initial_word", initial_word)):
            if not isinstance(text, str):
                raise TypeError(f"`{name}` must be a str. Received: {name}={text!r:.200}")
        room = model.architecture.text_encoder.length - 2  # start and end of text
        arguments.whole_number("vectors", vectors, 1, room)
        start = model.tokenizer.encode(initial_word)[1:-1]
        if not 1 <= len(start) <= vectors:
            raise ValueError(
                f"`initial_word` must have 1 to {vectors} tokens, as many as `vectors` at most. "
                f"Received: {initial_word=!r:.200} with {len(start)}, {vectors=}"
            )
        self.tokenizer, self._known = copy.copy(model.tokenizer), model.tokenizer.vocab_size
        self.tokenizer.add_tokens(word, vectors)
        self.word = word
        rows = [start[i * len(start) // vectors] for i in range(vectors)]
        values = ops.convert_to_numpy(ops.take(self._table(), rows, axis=0)).astype("float32")
        self.vectors = self.add_weight(name="vectors", shape=values.shape, initializer=lambda *_, **__: values)

    def _table(self):
        return next(v for v in self.model.text_encoder.variables if v.path == textual_inversion.EMBEDDING)

    @contextmanager
    def applied(self, tensors):
        usual, table = operation("embed"), self._table()

        def embed(layer, tokens):
            if layer.embeddings is not table:
                return usual(layer, tokens)
            known = usual(layer, ops.minimum(tokens, self._known - 1))
            places = ops.one_hot(tokens - self._known, self.vectors.shape[0])  # no row is 1 for a known token
            new = ops.sum(places[..., None] * self.vectors, axis=-2)
            return ops.where((tokens >= self._known)[..., None], ops.cast(new, known.dtype), known)

        with replace_operations(embed=embed):
            yield

    def require_captions(self, images):
        for caption in {caption for record in images for caption in record.captions}:
            if not any(token >= self._known for token in self.tokenizer.encode(caption)):
                raise ValueError(f"Every caption must contain the word {self.word!r}. Received: {caption!r:.200}")

    def save(self, path, format="diffusers"):
        """Writes what was learned, see `textual_inversion.save`."""
        textual_inversion.save(path, self.word, ops.convert_to_numpy(self.vectors), format)

    def update_model(self):
        """Teaches the model the word, or changes what it means to the model."""
        model = self.model
        if model.tokenizer.added_tokens == self.tokenizer.added_tokens:
            with changing(model, model.text_encoder):
                table = self._table()
                values = ops.cast(self.vectors, table.dtype)
                table.assign(ops.concatenate([table[: self._known], values]))
        elif model.tokenizer.vocab_size == self._known:
            with tempfile.TemporaryDirectory() as folder:
                self.save(path := Path(folder) / "embedding.safetensors")
                model.load_textual_inversion(path, self.word)
            model.text_encoder.trainable = False
        else:
            raise ValueError(
                "The model has learned other words since the training began, so the new one has no place; save it with "
                f"`save_textual_inversion`. Received: a model with {list(model.tokenizer.added_tokens)!r:.200}"
            )
