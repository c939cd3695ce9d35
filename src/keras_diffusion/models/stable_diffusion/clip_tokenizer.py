"""KerasCV's module of the tokenizer."""

from keras_diffusion.prompts.tokenizer import SimpleTokenizer as SimpleTokenizer
