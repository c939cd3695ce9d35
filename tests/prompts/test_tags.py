"""LoRAs that prompts name: what is taken out of a prompt, and what is refused."""

import pytest

from keras_diffusion.prompts.tags import take_loras

READ = {  # prompt → what is left of it, and the scales for the text encoder and the diffusion model
    "a cat": ("a cat", {}),
    "a <lora:style:0.7> cat": ("a  cat", {"style": (0.7, 0.7)}),
    "a cat<lora:style>": ("a cat", {"style": (1, 1)}),
    "<lora:a b.c:-.5><lyco:two:2>": ("", {"a b.c": (-0.5, -0.5), "two": (2, 2)}),
    "<lora:style:0.5:0.8>": ("", {"style": (0.5, 0.8)}),
    "<lora:style:0.5:unet=0.8>": ("", {"style": (0.5, 0.8)}),
    "<lora:style:te=0:unet=0.8>": ("", {"style": (0, 0.8)}),
    "<lora:style:te=0.3>": ("", {"style": (0.3, 0.3)}),
    "<lora:style:1:te=0.3>": ("", {"style": (0.3, 0.3)}),
    "a <cat-toy> (b:1.2) 1 < 2:3 > 1": ("a <cat-toy> (b:1.2) 1 < 2:3 > 1", {}),
}


@pytest.mark.parametrize("prompt", READ)
def test_loras_are_taken_out(prompt):
    rest, scales = READ[prompt]
    expected = {name: dict(zip(("text_encoder", "diffusion_model"), x, strict=True)) for name, x in scales.items()}
    assert take_loras("prompt", prompt) == (rest, expected)
    assert take_loras("prompt", [prompt, prompt]) == ([rest, rest], expected)


@pytest.mark.parametrize("value", [3, [3], None, []])
def test_what_is_no_prompt_is_left_to_others(value):
    assert take_loras("prompt", value) == (value, {})


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("<hypernet:x:1>", "must be <lora:name:weight>"),
        ("<lora:x:one>", "must be a number"),
        ("<lora:x:nan>", "must be a number"),
        ("<lora:x:1:2:3>", "must be a number"),
        ("<lora:x:1:dyn=8>", "must be a number"),
        ("<lora:x:1><lora:x:0.5>", "once"),
        (["<lora:x:1>", "<lora:x:0.5>"], "the same LoRAs"),
        (["<lora:x:1>", "a"], "the same LoRAs"),
    ],
)
def test_what_cannot_be_obeyed_is_refused(prompt, message):
    with pytest.raises(ValueError, match=message) as caught:
        take_loras("prompt", prompt)
    assert "Received: " in str(caught.value)
