"""The part of A1111's interface that its ControlNet extension adds, on models that draw nothing."""

import json

import pytest

from .test_a1111_api import image, post

UNIT = {"image": image(), "model": "canny [0123abcd]", "module": "none"}
WRONG_UNITS = {  # what is wrong → unit and a part of the message
    "preprocessor": (UNIT | {"module": "canny"}, "preprocessor"),
    "name": (UNIT | {"model": "depth"}, "no such ControlNet; there are canny"),
    "path": (UNIT | {"model": "../canny"}, "no such ControlNet"),
    "no image": (UNIT | {"image": None}, "base64"),
    "no base64": (UNIT | {"image": "/etc/passwd"}, "base64"),
    "control mode": (UNIT | {"control_mode": "ControlNet is more important"}, "control_mode"),
    "mask": (UNIT | {"mask": image()}, "mask"),
    "resize mode": (UNIT | {"resize_mode": 3}, "resize_mode"),
    "interval": (UNIT | {"guidance_start": 2}, "end"),
    "weight": (UNIT | {"weight": "x"}, "scale"),
}


@pytest.fixture(scope="module")
def steered(module_start, tmp_path_factory):
    """A client of a server that knows one ControlNet, "canny"."""
    folder = tmp_path_factory.mktemp("controlnets")
    (folder / "canny.pth").touch()
    return module_start(jobs="steered", controlnets=folder)


def test_controlnets_are_followed_by_name(steered):
    for list_, expected in {"model_list": ["canny"], "module_list": ["none"]}.items():
        assert steered.get(f"/controlnet/{list_}").json()[list_] == expected
    assert steered.get("/sdapi/v1/scripts").json()["txt2img"] == ["controlnet"]
    assert steered.post("/controlnet/detect", json={"controlnet_module": "canny"}).status_code == 422
    unit = UNIT | {"weight": 0.5, "guidance_end": 0.75, "resize_mode": "Just Resize", "pixel_perfect": True}
    units = [unit, {"enabled": False, "module": "canny"}]
    answer = post(steered, "txt2img", steps=2, enable_hr=True, alwayson_scripts={"ControlNet": {"args": units}})
    row = {"name": "canny", "scale": 0.5, "start": 0.0, "end": 0.75, "resize": "stretch"}
    for job, inputs in steered.models.drawn:
        assert job.arguments["controls"] == [row]
        assert len(inputs["control"]) == 1
    assert 'ControlNets: "[{\\"name\\": \\"canny\\"' in json.loads(answer["info"])["infotexts"][0]
    post(steered, "img2img", init_images=[image()], alwayson_scripts={"controlnet": {"args": [UNIT | {"image": None}]}})
    _, inputs = steered.models.drawn[-1]
    assert inputs["control"] == inputs["image"]


@pytest.mark.parametrize("case", WRONG_UNITS)
def test_a_wrong_unit_is_refused_by_name(steered, case):
    unit, message = WRONG_UNITS[case]
    seen = len(steered.models.drawn)
    answer = steered.post("/sdapi/v1/txt2img", json={"alwayson_scripts": {"controlnet": {"args": [unit]}}})
    assert 400 <= answer.status_code < 500
    assert message in answer.json()["detail"]
    assert len(steered.models.drawn) == seen
