"""The options of the methods that draw: each is documented, and a misspelt one is answered with the nearest."""

import inspect
import re

import pytest

from keras_diffusion import StableDiffusion
from keras_diffusion.generation.options import (
    OTHER_NAMES,
    HiresOptions,
    Options,
    OptionsOnce,
    OptionsWithImage,
    OptionsWithMask,
    OptionsWithNoise,
    SizeOptions,
    refuse_unknown,
)
from keras_diffusion.generation.request import ALWAYS, make_request

KNOWN = ["prompt", *ALWAYS, *Options.__annotations__]
PARAMETERS = inspect.signature(make_request).parameters


def test_options_are_what_a_request_takes():
    own = {x.name for x in PARAMETERS.values() if x.kind is x.KEYWORD_ONLY}
    refining = {"refiner", "refiner_start"}  # which `make_parts` takes
    others = set(SizeOptions.__annotations__) | refining | set(HiresOptions.__annotations__)
    assert set(Options.__annotations__) == own - {"passed"} | others
    assert set(ALWAYS) < set(PARAMETERS)


def test_every_option_is_documented():
    assert set(re.findall(r"^ +(\w+): \S", Options.__doc__, re.MULTILINE)) == set(Options.__annotations__)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("text_to_image", Options),
        ("denoise", OptionsOnce),
        ("image_to_image", OptionsWithMask),
        ("inpaint", OptionsWithNoise),
        ("generate_image", OptionsWithImage),
    ],
)
def test_methods_take_every_option_once(method, options):
    method = getattr(StableDiffusion, method)
    named = set(inspect.signature(method).parameters) & set(Options.__annotations__)
    named |= {"outpaint"} if "mask" in named else set()  # which takes its place
    named |= set() if options is Options else set(HiresOptions.__annotations__)
    assert set(options.__annotations__) == set(Options.__annotations__) - named
    assert options in inspect.signature(method).parameters["options"].annotation.__args__
    assert "keras_diffusion.Options" in method.__doc__


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        *OTHER_NAMES.items(),
        ("num_step", "num_steps"),
        ("samplr", "sampler"),
        ("negativ_prompt", "negative_prompt"),
        ("img_hieght", "img_height"),
    ],
)
def test_the_nearest_name_is_suggested(given, meant):
    with pytest.raises(TypeError, match=rf"Received: {given}\. Did you mean {meant}\?$"):
        refuse_unknown([given], KNOWN)


def test_nothing_is_suggested_where_nothing_is_near():
    with pytest.raises(TypeError, match=r"Received: xyz, colour$"):
        refuse_unknown(["xyz", "colour"], KNOWN)
