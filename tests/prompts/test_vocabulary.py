"""The words of a prompt that a model has not learned are found, and named in a warning."""

import numpy as np
import pytest
from keras import ops

from keras_diffusion import StableDiffusion
from keras_diffusion.prompts.tokenizer import SimpleTokenizer
from keras_diffusion.prompts.vocabulary import unlearned

from ..small import SMALL

TABLE = "embeddings_token_embedding"


@pytest.mark.parametrize(
    ("text", "forgotten", "words"),
    [
        ("a red apple", "", []),
        ("a red apple", "red", ["red"]),
        ("Pear, apple, pear!", "pear ! ,", ["pear"]),  # once, and no punctuation
        ("a zqxwv é", "é", ["é"]),
        ("a zqxwv é", "zqx", ["zqxwv"]),  # a part of the word is enough
    ],
)
def test_words_with_a_token_that_is_not_learned(text, forgotten, words):
    tokenizer = SimpleTokenizer()
    tokens = tokenizer.encode(text)[1:-1]
    without = {token for word in forgotten.split() for token in tokenizer.encode(word)[1:-1]}
    if forgotten == "zqx":
        without = {tokens[1]}  # one of several
        assert len(tokens) > 4
    assert unlearned(tokenizer, tokens, [token not in without for token in tokens]) == words


@pytest.mark.backend
def test_a_model_names_the_words_whose_embeddings_are_zero(caplog):
    model = StableDiffusion(preset=SMALL, jit_compile=False)
    table = model.text_encoder.get_layer(TABLE).embeddings
    embeddings = np.array(ops.convert_to_numpy(table))
    embeddings[[token for word in ("zebra", "comet") for token in model.tokenizer.encode(word)[1:-1]]] = 0
    table.assign(embeddings)
    model.encode_text("a horse near the moon")
    assert not caplog.records
    settings = {"num_steps": 1, "batch_size": 2, "verbose": 0, "output": "latents"}
    model.text_to_image("a zebra, a Comet", negative_prompt="zebra", **settings)
    messages = [record.message for record in caplog.records if "not learned" in record.message]
    assert sorted(messages) == [
        'The model has not learned "zebra", "comet"; use other words.',
        'The model has not learned "zebra"; use other words.',
    ]
