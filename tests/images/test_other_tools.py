"""What other tools than A1111 write into images: followed where the library can, and named where it cannot."""

import json
import time

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from keras_diffusion.images import comfyui, job_settings, metadata

IMAGE = Image.fromarray(np.zeros((16, 24, 3), "uint8"))
# As ComfyUI's API format has it: two LoRAs, a primitive, a ControlNet and a second sampler.
PROMPT = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            **{"seed": ["20", 0], "steps": 20, "cfg": 8.5, "sampler_name": "dpmpp_2m", "scheduler": "karras"},
            **{
                "denoise": 1,
                "model": ["11", 0],
                "positive": ["12", 0],
                "negative": ["12", 1],
                "latent_image": ["5", 0],
            },
        },
    },
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 768, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a (cat:1.2), [x]", "clip": ["13", 0]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "sad", "clip": ["13", 0]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["14", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["8", 0]}},
    "10": {
        "class_type": "LoraLoader",
        "inputs": {
            **{"lora_name": "sub\\one.safetensors", "strength_model": 0.8, "strength_clip": 0.5},
            **{"model": ["4", 0], "clip": ["4", 1]},
        },
    },
    "11": {
        "class_type": "LoraLoaderModelOnly",
        "inputs": {"lora_name": "two.safetensors", "strength_model": 1, "model": ["10", 0]},
    },
    "12": {
        "class_type": "ControlNetApplyAdvanced",
        "inputs": {"positive": ["6", 0], "negative": ["7", 0], "strength": 1},
    },
    "13": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["10", 1]}},
    "14": {"class_type": "KSampler", "inputs": {"seed": 4, "latent_image": ["15", 0], "positive": ["6", 0]}},
    "15": {"class_type": "LatentUpscale", "inputs": {"samples": ["3", 0]}},
    "20": {"class_type": "PrimitiveNode", "inputs": {"value": 77}},
}
CUSTOM = {
    "1": {
        "class_type": "SamplerCustomAdvanced",
        "inputs": {
            **{
                "noise": ["2", 0],
                "guider": ["3", 0],
                "sampler": ["4", 0],
                "sigmas": ["5", 0],
                "latent_image": ["6", 0],
            },
        },
    },
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "3": {
        "class_type": "CFGGuider",
        "inputs": {"cfg": 4, "positive": ["7", 0], "negative": ["8", 0], "model": ["9", 0]},
    },
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
    "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "normal", "steps": 6, "denoise": 0.5}},
    "6": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["10", 0]}},
    "8": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad"}},
    "9": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "x.ckpt"}},
    "10": {"class_type": "ShowText", "inputs": {"text": "a dog"}},
}
WORKFLOW = {
    "nodes": [
        {
            **{"id": 3, "type": "KSampler", "widgets_values": [9, "fixed", 7, 2.5, "euler", "normal", 1.0]},
            "inputs": [
                {"name": "positive", "link": 1},
                {"name": "negative", "link": 2},
                {"name": "latent_image", "link": 3},
            ],
        },
        {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["a cat"], "inputs": []},
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["sad"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [64, 32, 1]},
        {"id": 8, "type": "Odd", "widgets_values": {"a": 1}},
        {"id": 9, "type": "Off", "mode": 4},
    ],
    "links": [[1, 6, 0, 3, 1, "CONDITIONING"], [2, 7, 0, 3, 2, "CONDITIONING"], [3, 5, 0, 3, 3, "LATENT"]],
}
INVOKEAI = {
    **{"generation_mode": "txt2img", "positive_prompt": "a cat++", "negative_prompt": "", "width": 512, "height": 640},
    **{"seed": 3, "cfg_scale": 7.5, "steps": 30, "scheduler": "dpmpp_2m_k", "clip_skip": 1, "app_version": "4.2"},
    **{"model": {"name": "dreamshaper", "hash": "x"}, "loras": [{"model": {"name": "one"}, "weight": 0.6}]},
    **{"cfg_rescale_multiplier": 0.5, "controlnets": []},
}
OLDER_INVOKEAI = {
    "model": "stable diffusion",
    "app_id": "invoke-ai/InvokeAI",
    "image": {
        **{"prompt": [{"prompt": "a cat", "weight": 1}], "steps": 5, "cfg_scale": 7, "seed": 1, "sampler": "k_lms"},
        **{"width": 64, "height": 64, "threshold": 0, "perlin": 0.1, "type": "txt2img"},
    },
}
NOVELAI = {
    **{"prompt": "{cat}", "steps": 28, "height": 1216, "width": 832, "scale": 5.0, "seed": 9, "uc": "bad", "sm": True},
    **{"sampler": "k_euler_ancestral", "noise_schedule": "karras", "n_samples": 1},
}
FOOOCUS = {
    **{"prompt": "a cat", "negative_prompt": "", "steps": 30, "guidance_scale": 4.0, "sharpness": 2.0, "seed": "7"},
    **{"resolution": "(1152, 896)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "base_model": "jugger"},
    **{"loras": [["one.safetensors", 0.1, "hash"]], "version": "Fooocus v2.5"},
}
SWARMUI = {
    "sui_image_params": {
        **{"prompt": "a cat", "negativeprompt": "sad", "model": "x", "seed": 4, "steps": 9, "cfgscale": 6, "width": 64},
        **{"height": 96, "sampler": "euler", "scheduler": "normal", "refinerupscale": 2},
    }
}
COMFYUI_DRAWS = {
    **{"prompt": r"a (cat:1.2), \[x\]<lora:one:0.5:0.8><lora:two:0:1>", "negative_prompt": "sad", "num_steps": 20},
    **{"seed": 77, "unconditional_guidance_scale": 8.5, "sampler": "dpmpp_2m", "spacing": "karras", "clip_skip": 1},
    **{"prompt_weighting": True, "img_width": 512, "img_height": 768},
}
CASES = {
    "ComfyUI": (
        {"prompt": PROMPT, "workflow": {}},
        COMFYUI_DRAWS,
        ["ControlNetApplyAdvanced", "KSampler", "LatentUpscale", "weights of words"],
    ),
    "ComfyUI, custom sampler": (
        {"prompt": CUSTOM},
        {"prompt": "a dog", "negative_prompt": "bad", "seed": 5, "num_steps": 6, "unconditional_guidance_scale": 4.0},
        ["ShowText", "denoise"],
    ),
    "ComfyUI, workflow alone": (
        {"workflow": WORKFLOW},
        {"prompt": "a cat", "negative_prompt": "sad", "seed": 9, "num_steps": 7, "img_width": 64, "img_height": 32},
        ["Odd"],
    ),
    "InvokeAI": (
        {"invokeai_metadata": INVOKEAI},
        {
            "prompt": "a cat++<lora:one:0.6>",
            "sampler": "dpmpp_2m",
            "spacing": "karras",
            "clip_skip": 1,
            "img_height": 640,
        },
        ["cfg_rescale_multiplier", "weights of words"],
    ),
    "InvokeAI, older": (
        {"sd-metadata": OLDER_INVOKEAI},
        {"prompt": "a cat", "num_steps": 5, "sampler": "lms", "seed": 1},
        ["perlin"],
    ),
    "NovelAI": (
        {"Comment": NOVELAI},
        {
            "prompt": "{cat}",
            "negative_prompt": "bad",
            "num_steps": 28,
            "sampler": "euler_ancestral",
            "spacing": "karras",
        },
        ["sm", "weights of words"],
    ),
    "Fooocus": (
        {"parameters": FOOOCUS},
        {"prompt": "a cat<lora:one:0.1>", "img_width": 1152, "sampler": "dpmpp_2m_sde", "seed": 7},
        ["sharpness"],
    ),
    "SwarmUI": (
        {"parameters": SWARMUI},
        {"prompt": "a cat", "negative_prompt": "sad", "unconditional_guidance_scale": 6.0, "img_height": 96},
        ["refinerupscale"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_tool_writes_is_followed_or_named(tmp_path, case):
    texts, expected, others = CASES[case]
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_text(name, json.dumps(value))
    IMAGE.save(tmp_path / "x.png", pnginfo=info)

    found = metadata.read(tmp_path / "x.png")
    tool = case.partition(",")[0]
    assert found["Made by"] == tool
    assert all(isinstance(value, str) for value in found.values())
    drawn = metadata.call_arguments(found)
    assert {name: drawn.get(name) for name in expected} == expected
    assert metadata.not_followed(found) == [f"{tool}'s {name}" for name in others]


@pytest.mark.parametrize("suffix", ["jpg", "webp"])
def test_exif_holds_the_same(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = "workflow:{}", f"prompt:{json.dumps(PROMPT)}"
    IMAGE.save(tmp_path / f"x.{suffix}", exif=exif)
    found = metadata.call_arguments(metadata.read(tmp_path / f"x.{suffix}"))
    assert {name: found[name] for name in COMFYUI_DRAWS} == COMFYUI_DRAWS

    exif = Image.Exif()
    exif.get_ifd(metadata.EXIF_IFD)[metadata.USER_COMMENT] = json.dumps(FOOOCUS).encode()
    IMAGE.save(tmp_path / f"x.{suffix}", exif=exif)
    assert metadata.read(tmp_path / f"x.{suffix}")["Made by"] == "Fooocus"


LOOP = {
    "class_type": "KSampler",
    "inputs": {name: ["1", 0] for name in ("positive", "latent_image", "seed", "model", "clip")},
}
ABSURD = ["[" * 100_000, "{}", "[]", "1", "null", '{"a": {"class_type": 1, "inputs": 2}}', json.dumps({"1": LOOP})]


@pytest.mark.parametrize("name", ["prompt", "workflow", "invokeai_metadata", "sd-metadata", "Comment", "parameters"])
@pytest.mark.parametrize("text", ABSURD, ids=range(len(ABSURD)))
def test_absurd_texts_are_read(tmp_path, name, text):
    info = PngImagePlugin.PngInfo()
    info.add_text(name, text)
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    try:
        assert all(isinstance(value, str) for value in metadata.read(tmp_path / "x.png").values())
    except ValueError as error:
        assert "Received: " in str(error)  # noqa: PT017


def test_graphs_are_searched_in_linear_time():
    """A graph of 1 MB, whose searches took days when they looked at each node from each other."""
    nodes = 5000
    chain = {str(i): {"class_type": "KSampler", "inputs": {"seed": [str(i + 1), 0]}} for i in range(nodes)}
    for node in chain.values():
        node["inputs"] |= dict.fromkeys(("latent_image", "model", "positive", "lora_name"), node["inputs"]["seed"])
    begun = time.process_time()
    assert comfyui.settings({"prompt": json.dumps(chain)})["Made by"] == "ComfyUI"
    assert time.process_time() - begun < 2


def test_more_text_than_any_recipe_is_refused(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("prompt", json.dumps([[]] * 400_000).replace("[", "{", 1))
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    with pytest.raises(ValueError, match="longer than any recipe"):
        metadata.read(tmp_path / "x.png")


@pytest.mark.parametrize("case", CASES)
def test_people_read_all_of_it(tmp_path, case):
    texts, expected, others = CASES[case]
    info = PngImagePlugin.PngInfo()
    for name, value in texts.items():
        info.add_text(name, json.dumps(value))
    IMAGE.save(tmp_path / "x.png", pnginfo=info)
    call, text = job_settings.read((tmp_path / "x.png").read_bytes())
    assert expected.items() <= call.items()
    assert all(name in text for name in others)
