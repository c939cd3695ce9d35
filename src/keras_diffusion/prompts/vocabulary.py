"""Finds the words of prompts that a model has not learned."""


def unlearned(tokenizer, tokens, learned):
    """Lists the words that hold a token which the model has not learned.

    Args:
        tokenizer: A `SimpleTokenizer`.
        tokens: The n tokens of a text, without start and end.
        learned: n bools, whether the model has learned each of them.

    Returns:
        A list of str: words with a letter or a digit, each once, in the order of the text.
    """
    if all(learned):
        return []
    vocab, words, word, complete = tokenizer.vocab, {}, [], True
    for token, known in zip(tokens, learned, strict=True):
        word.append(token)
        complete = complete and known
        if vocab[token].endswith("</w>"):
            text = "" if complete else tokenizer.decode(word)
            if any(map(str.isalnum, text)):
                words[text.strip()] = None
            word, complete = [], True
    return [*words]
