import hashlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
from PIL import Image

from keras_diffusion import __version__, architectures, stable_diffusion, terminal
from keras_diffusion.cli import main as cli
from keras_diffusion.errors import CorruptCheckpointError, NumericalError
from keras_diffusion.images import metadata
from keras_diffusion.sampling.registry import SAMPLERS

from ..small import SMALL

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 24, 3), "uint8")
SIGNATURE = inspect.signature(stable_diffusion.StableDiffusion.text_to_image)


class FakeModel:
    """Remembers what the facade was asked, and "draws" `IMAGES`."""

    name = "emoji"
    defaults = 25, 3.0

    def __init__(self, *args, **kwargs):
        constructor = inspect.signature(stable_diffusion.StableDiffusion.__init__)
        self.built = constructor.bind(self, *args, **kwargs).arguments
        self.built.update(self.built.pop("parts", {}))
        self.architecture = SimpleNamespace(name=self.name, prediction_type="epsilon")
        self.img_height, self.img_width, self.sampler = 16, 24, "dpmpp_2m"
        self.made.append(self)

    def text_to_image(self, *args, **kwargs):
        self.call = SIGNATURE.bind(self, *args, **kwargs).arguments
        self.call.update(self.call.pop("options"))
        for step in range(1, self.call["num_steps"] + 1):
            self.after_step(step)
            self.call["callback"](step, 0.0, np.zeros((1, 2, 3, 4)))
        return IMAGES[: self.call["batch_size"]]

    def after_step(self, step):
        pass


@pytest.fixture
def fake(monkeypatch):
    """The class that stands for `StableDiffusion`."""
    module = SimpleNamespace(StableDiffusion=type("Fake", (FakeModel,), {"made": []}))
    monkeypatch.setitem(sys.modules, "keras_diffusion.stable_diffusion", module)
    return module.StableDiffusion


@pytest.fixture
def generate(fake, tmp_path, monkeypatch):
    """Function that runs `keras-diffusion generate` in an empty folder and returns the exit code."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "model_index.json").write_text("{}")
    (model / "unet").mkdir()
    (model / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"weights")
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def run(*options):
        return cli.main(["generate", "a slice of pizza", "--output", "pizza.png", "--preset", str(model), *options])

    return run


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a model with random weights."""
    return saved(architectures.TINY, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of another, which is quicker to draw with."""
    return saved(SMALL, tmp_path_factory.mktemp("models") / "small")


def saved(architecture, path):
    keras.utils.set_random_seed(0)
    stable_diffusion.StableDiffusion(preset=architecture).save_to_preset(path)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_an_image_is_written_and_its_path_printed(generate, capsys):
    assert generate("--seed", "1") == 0
    assert capsys.readouterr() == ("pizza.png\n", "")
    assert os.listdir() == ["pizza.png"]
    np.testing.assert_array_equal(pixels("pizza.png"), IMAGES[0])


def test_a_prompt_names_loras_of_a_folder(generate, fake, tmp_path, capsys):
    prompt = [
        "a cat <lora:style:0.5>",
        "--prompt-weighting",
        "--output",
        "cat.png",
        "--preset",
        str(tmp_path / "model"),
    ]
    (tmp_path / "loras").mkdir()
    with pytest.raises(SystemExit):
        cli.main(["generate", *prompt])
    assert "--lora-folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["generate", *prompt, "--lora-folder", str(tmp_path / "loras")])
    assert "no such LoRA" in capsys.readouterr().err
    (tmp_path / "loras/style.safetensors").touch()
    assert cli.main(["generate", *prompt, "--lora-folder", str(tmp_path / "loras")]) == 0
    [model] = fake.made
    assert model.call["prompt"] == prompt[0]
    assert model.lora_folder == tmp_path / "loras"


def test_an_image_is_drawn_again_like_another(generate, fake, capsys):
    options = "--seed 5 --steps 7 --guidance 3 --sampler euler --spacing karras --prompt-weighting --clip-skip 1"
    assert generate(*options.split(), "--negative-prompt", "blue", "--width", "24", "--height", "16") == 0
    capsys.readouterr()
    preset = str(Path("../model").resolve())
    for i, others in enumerate(([], ["a dog", "--steps", "9", "--seed", "6"])):
        command = ["generate", *others, "--like", "pizza.png", "--output", f"again-{i}.png", "--preset", preset]
        assert cli.main(command) == 0
        assert capsys.readouterr() == (f"again-{i}.png\n", "")
    first, again, other = ({k: v for k, v in made.call.items() if k not in ("self", "callback")} for made in fake.made)
    assert again == first
    assert other == first | {"prompt": "a dog", "num_steps": 9, "seed": 6}
    assert [(made.built["img_height"], made.built["img_width"]) for made in fake.made] == [(16, 24)] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--like", "plain.png"], "must be an image that says how it was made"), ([], "the prompt is missing")],
)
def test_nothing_to_draw_like(arguments, message, generate, fake, capsys):
    Image.fromarray(IMAGES[0]).save("plain.png")
    with pytest.raises(SystemExit):
        cli.main(["generate", *arguments, "--output", "x.png"])
    assert message in capsys.readouterr().err
    assert not fake.made


def test_several_images_are_numbered(generate, capsys):
    assert generate("--batch-size", "3") == 0
    names = ["pizza-1.png", "pizza-2.png", "pizza-3.png"]
    assert capsys.readouterr().out.split() == sorted(os.listdir()) == names
    for name, image in zip(names, IMAGES, strict=True):
        np.testing.assert_array_equal(pixels(name), image)


@pytest.mark.parametrize(
    ("name", "kind"), [("a.b.png", "PNG"), ("x.JPG", "JPEG"), ("x.jpeg", "JPEG"), ("x.webp", "WEBP")]
)
def test_the_suffix_decides_the_format(generate, name, kind):
    assert generate("--output", name) == 0
    with Image.open(name) as image:
        assert (image.format, image.size) == (kind, (24, 16))


def test_every_option_reaches_the_model(generate, fake):
    options = "--negative-prompt blue --batch-size 2 --steps 7 --guidance 0 --seed 5 --sampler euler "
    options += "--width 24 --height 16 --dtype bfloat16 --jit-compile "
    options += "--prompt-weighting --long-prompts chunk --clip-skip 1 --spacing karras"
    assert generate(*options.split()) == 0
    (model,) = fake.made
    assert {**model.built, "self": None, "preset": None} == {
        "self": None,
        "img_height": 16,
        "img_width": 24,
        "jit_compile": True,
        "dtype": "bfloat16",
        "preset": None,
    }
    assert model.built["preset"].endswith("model")
    call = {key: value for key, value in model.call.items() if key not in ("self", "callback")}
    assert call == {
        "prompt": "a slice of pizza",
        "negative_prompt": "blue",
        "batch_size": 2,
        "num_steps": 7,
        "unconditional_guidance_scale": 0.0,
        "seed": 5,
        "sampler": "euler",
        "spacing": "karras",
        "prompt_weighting": True,
        "long_prompts": "chunk",
        "clip_skip": 1,
        "verbose": 0,
    }


@pytest.mark.parametrize("expected", [[25, 3.0], [1, 1.0]])
def test_steps_and_guidance_suit_the_model(generate, fake, expected):
    fake.defaults = expected
    assert generate() == 0
    call = fake.made[0].call
    assert [call["num_steps"], call["unconditional_guidance_scale"]] == expected
    assert fake.made[0].built["jit_compile"] == "auto"


def test_a_seed_that_was_not_given_is_told(generate, fake, capsys):
    seeds = []
    for model in range(2):
        assert generate() == 0
        captured = capsys.readouterr()
        seeds.append(fake.made[model].call["seed"])
        assert f"--seed {seeds[-1]} " in captured.err
        assert captured.out == "pizza.png\n"
    assert seeds[0] != seeds[1]


def test_an_existing_file_is_replaced(generate):
    with open("pizza.png", "w") as file:
        file.write("the old one")
    os.link("pizza.png", "old")
    assert generate() == 0
    np.testing.assert_array_equal(pixels("pizza.png"), IMAGES[0])
    with open("old") as file:  # whoever has it open goes on reading it
        assert file.read() == "the old one"


def test_a_picture_says_how_it_was_made(generate, fake):
    options = "--negative-prompt blue --batch-size 2 --seed 5 --dtype float16 --clip-skip 1".split()
    assert generate(*options) == 0
    made = [metadata.read(f"pizza-{i}.png") for i in (1, 2)]
    assert made[1] == {
        "Prompt": "a slice of pizza",
        "Negative prompt": "blue",
        "Steps": "25",
        "Sampler": "DPM++ 2M",
        "Sampler settings": "model",
        "CFG scale": "3.0",
        "Seed": "6",
        "Clip skip": "2",
        "Emphasis": "None",
        "Long prompts": "error",
        "Size": "24x16",
        "Version": f"keras-diffusion {__version__}",
        "Model": "model",
        "Model hash": hashlib.sha256(b"weights").hexdigest()[:10],
        "Prediction type": "epsilon",
        "Precision": "float16",
    }
    assert made[0] == made[1] | {"Seed": "5"}


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_without_metadata_a_picture_says_nothing(generate, suffix):
    path = f"pizza.{suffix}"
    assert generate("--output", path) == 0
    assert metadata.read(path)
    assert generate("--output", path, "--no-metadata") == 0
    assert metadata.read(path) == {}
    with Image.open(path) as image:
        assert not image.getexif()


def test_what_no_file_could_hold_is_refused_before_it_is_drawn(generate, fake, capsys):
    assert generate("--seed", "1", "--negative-prompt", " " * 40_000) == 1
    assert "32000 characters" in capsys.readouterr().err
    assert not hasattr(fake.made[0], "call")
    assert generate("--seed", "1", "--negative-prompt", " " * 40_000, "--no-metadata") == 0


def test_a_weight_file_is_not_needed_for_a_picture(generate, tmp_path):
    (tmp_path / "model" / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    assert generate() == 0
    assert "Model hash" not in metadata.read("pizza.png")


def test_info_describes_a_picture(generate, capsys):
    assert generate("--seed", "1", "--negative-prompt", "a\x1b[31m\nb") == 0
    capsys.readouterr()
    assert cli.main(["info", "pizza.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "Prompt           a slice of pizza",
        "Negative prompt  a\\x1b[31m",
        "                 b",
        "Steps            25",
    ]


def test_info_of_a_picture_that_says_nothing(tmp_path, capsys):
    Image.fromarray(IMAGES[0]).save(tmp_path / "plain.PNG")
    assert cli.main(["info", str(tmp_path / "plain.PNG")]) == 0
    assert capsys.readouterr().out == "parameters       none\n"
    assert cli.main(["info", str(tmp_path / "nowhere.png")]) == 1
    assert "no such file" in capsys.readouterr().err


def test_a_picture_can_be_made_again(small, tmp_path):
    path = str(tmp_path / "pizza.png")
    options = ["--prompt-weighting", "--clip-skip", "1", "--sampler", "euler a", "--width", "8", "--batch-size", "2"]
    prompt = ["a (slice:1.3) BREAK of pizza", "--negative-prompt", "[blue]"]
    assert cli.main(["generate", *prompt, "--output", path, "--preset", str(small), "--steps", "2", *options]) == 0
    drawn = tmp_path / "pizza-2.png"
    call = metadata.call_arguments(metadata.read(drawn))
    again = stable_diffusion.StableDiffusion(preset=str(small)).text_to_image(**call, verbose=0)
    assert np.abs(again[0].astype(int) - pixels(drawn)).max() <= 1


def test_a_link_stays_a_link(generate, tmp_path):
    os.symlink(tmp_path / "target.png", "pizza.png")
    assert generate() == 0
    assert os.path.islink("pizza.png")
    np.testing.assert_array_equal(pixels(tmp_path / "target.png"), IMAGES[0])


def test_nothing_is_half_written(generate, capsys, monkeypatch):
    def full_disk(path, content):
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    with open("pizza.png", "w") as file:
        file.write("the old one")
    monkeypatch.setattr("pathlib.Path.write_bytes", full_disk)
    assert generate("--seed", "1") == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert "[Errno 28] It cannot be written, nothing was left behind: the disk is full; make room." in error
    assert "pizza.png" in error
    assert os.listdir() == ["pizza.png"]
    with open("pizza.png") as file:
        assert file.read() == "the old one"


@pytest.mark.parametrize("error", [NumericalError, CorruptCheckpointError, OSError, MemoryError, ImportError])
def test_a_failure_is_a_message_and_code_1(generate, fake, capsys, error):
    def fail(self, step):
        raise error("It went wrong.")

    fake.after_step = fail
    assert generate("--seed", "1") == 1
    assert capsys.readouterr() == ("", "keras-diffusion: error: It went wrong.\n")
    assert os.listdir() == []


def test_a_defect_keeps_its_traceback(generate, fake):
    def fail(self, step):
        raise TypeError("a defect")

    fake.after_step = fail
    with pytest.raises(TypeError, match="a defect"):
        generate()


def test_ctrl_c_is_code_130(generate, fake, capsys):
    def interrupt(self, step):
        if step == 2:
            raise KeyboardInterrupt

    fake.after_step = interrupt
    assert generate("--seed", "1") == 130
    assert capsys.readouterr() == ("", "keras-diffusion: interrupted\n")
    assert os.listdir() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "`--steps` must be from 1 to 1000"),
        (["--steps", "1001"], "`--steps` must be from 1 to 1000"),
        (["--steps", "1.5"], "argument --steps: invalid int value"),
        (["--guidance", "-1"], "`--guidance` must be a number of at least 0, and finite"),
        (["--guidance", "nan"], "`--guidance` must be a number of at least 0, and finite"),
        (["--batch-size", "0"], "`--batch-size` must be from 1 to 1024"),
        (["--seed", "-1"], "A seed must be from 0"),
        (["--seed", str(2**63)], "A seed must be from 0"),
        (["--sampler", "magic"], "dpmpp_2m"),
        (["--dtype", "int8"], "mixed_bfloat16"),
        (["--negative-prompt", "pizza " * 100], "77 tokens"),
        (["--negative-prompt", "(pizza:1000)", "--prompt-weighting"], "from -100 to 100"),
        (["--long-prompts", "cut"], "error, truncate, chunk"),
        (["--clip-skip", "-1"], "`--clip-skip` must be from 0 to 22"),
        (["--preset", "nonsense"], "There is no such model"),
        (["--output", "pizza"], ".png, .jpg, .jpeg, .webp"),
        (["--output", "pizza.gif"], "Received: suffix of --output='.gif'"),
        (["--output", "nowhere/pizza.png"], "`--output` cannot be written: No such file or directory"),
        (["--output", "a" * 300 + ".png"], "`--output` cannot be written: File name too long"),
        (["--colour", "red"], "unrecognized arguments"),
    ],
)
def test_nonsense_is_refused_at_once(generate, fake, capsys, options, message):
    with pytest.raises(SystemExit) as exit:
        generate(*options)
    out, err = capsys.readouterr()
    assert exit.value.code == 2
    assert message in err
    assert out == ""
    assert fake.made == []
    assert os.listdir() == []


def test_a_folder_is_not_overwritten(generate, fake, capsys):
    os.mkdir("pizza.png")
    with pytest.raises(SystemExit) as exit:
        generate()
    assert exit.value.code == 2
    assert "it is a folder" in capsys.readouterr().err
    assert fake.made == []


def test_a_model_that_is_not_at_hand_is_a_failure(generate, fake, capsys):
    assert generate("--preset", "sd14") == 1
    assert "from_preset('sd14')" in capsys.readouterr().err
    assert fake.made == []


def test_a_command_is_needed(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main([])
    assert exit.value.code == 2
    assert "command" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as exit:
        cli.main(["--version"])
    assert exit.value.code == 0
    assert capsys.readouterr().out == f"keras-diffusion {__version__}\n"


def test_a_terminal_sees_a_bar(generate, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert generate("--steps", "2", "--seed", "1") == 0
    out, err = capsys.readouterr()
    assert out == "pizza.png\n"
    frames = err.split("\r\x1b[K")[1:]
    assert frames[0].startswith("loading ")
    assert frames[1:] == [f"[{'#' * 15}{' ' * 15}] 1/2", f"[{'#' * 30}] 2/2", ""]


def test_a_message_takes_the_place_of_the_bar(generate, fake, capsys, monkeypatch):
    def interrupt(self, step):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    fake.after_step = interrupt
    assert generate() == 130
    assert capsys.readouterr().err.endswith("\r\x1b[Kkeras-diffusion: interrupted\n")


@pytest.mark.parametrize(("level", "heard"), [(None, "after"), ("0", "before after")])
def test_backends_are_silent_at_import_unless_a_log_level_is_set(capfd, monkeypatch, level, heard):
    monkeypatch.delenv(terminal.LOG_LEVEL)
    if level:
        monkeypatch.setenv(terminal.LOG_LEVEL, level)
    with terminal.quiet():
        os.write(2, b"before ")
        assert os.environ[terminal.LOG_LEVEL] == (level or "3")
    os.write(2, b"after")
    assert capfd.readouterr().err == heard


def test_a_prompt_becomes_pictures(small, tmp_path, capsys):
    path = tmp_path / "pizza.png"
    options = ["--output", str(path), "--preset", str(small), "--batch-size", "2", "--steps", "2", "--width", "8"]
    assert cli.main(["generate", "a slice of pizza", "--seed", "3", *options]) == 0
    paths = [tmp_path / "pizza-1.png", tmp_path / "pizza-2.png"]
    assert capsys.readouterr() == (f"{paths[0]}\n{paths[1]}\n", "")
    first, second = map(pixels, paths)
    assert first.shape == second.shape == (16, 8, 3)
    assert not np.array_equal(first, second)


def test_what_the_facade_refuses_is_a_failure(tiny, tmp_path, capsys):
    options = ["--output", str(tmp_path / "x.png"), "--preset", str(tiny), "--seed", "1", "--width", "33"]
    assert cli.main(["generate", "x", *options]) == 1
    assert capsys.readouterr().err.startswith("keras-diffusion: error: `img_width` must be a multiple of 8")


def test_info_describes_the_installation(capsys):
    assert cli.main(["info"]) == 0
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["keras-diffusion"] == __version__
    assert rows["Keras"] == keras.__version__
    assert rows["backend"].startswith(f"{keras.backend.backend()} ")
    assert re.fullmatch(r"\w+(:\d+)?", rows["device"])
    assert "emoji" in rows["presets"].split(", ")
    assert rows["samplers"].split(", ") == list(SAMPLERS)


def test_info_describes_a_model(tiny, capsys):
    assert cli.main(["info", str(tiny)]) == 0
    found = rows(capsys.readouterr().out)
    model = stable_diffusion.StableDiffusion(preset=architectures.TINY)
    counts = {
        "text_encoder": model.text_encoder.count_params(),
        "unet": model.diffusion_model.count_params(),
        "vae": model.image_encoder.count_params() + model.decoder.count_params(),
    }
    assert found == {
        "folder": str(tiny),
        "architecture": "tiny",
        **{part: f"{count:,} parameters" for part, count in counts.items()},
        "image size": "64 × 64",
        "prediction type": "epsilon",
        "sampler": "ddim",
    }


def rows(text):
    return dict(re.split("  +| (?=/)", line, maxsplit=1) for line in text.splitlines())


def test_a_model_is_exported(fake, tmp_path, capsys):
    fake.export = lambda self, *given: setattr(self, "exported", given)
    command = ["export", "emoji", str(tmp_path / "out"), "--format", "litert", "--dtype", "float16", "--height", "32"]
    assert cli.main(command) == 0
    (model,) = fake.made
    assert (model.built["preset"], model.built["img_height"]) == ("emoji", 32)
    assert model.exported == (tmp_path / "out", "litert", "float16")
    assert capsys.readouterr().out == f"{tmp_path / 'out'}\n"
    (tmp_path / "out").touch()
    assert cli.main(command) == 1
    assert len(fake.made) == 1
    assert "something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dtype", "half"), [([], False), (["--dtype", "float16"], True), (["--dtype", "bfloat16"], True)]
)
def test_a_model_is_converted_there_and_back(tiny, tmp_path, capsys, dtype, half):
    single, again = tmp_path / "tiny.safetensors", tmp_path / "again"
    assert cli.main(["convert", str(tiny), str(single), *dtype]) == 0
    assert cli.main(["convert", str(single), str(again)]) == 0
    assert capsys.readouterr().out.splitlines() == [str(single), str(again)]
    parts = ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"]
    same = [
        (again / f"{part}.safetensors").read_bytes() == (tiny / f"{part}.safetensors").read_bytes() for part in parts
    ]
    assert same == [not half] * 3

    assert cli.main(["info", str(tiny)]) == cli.main(["info", str(single)]) == 0
    lines = capsys.readouterr().out.splitlines()
    folder, file = rows("\n".join(lines[: len(lines) // 2])), rows("\n".join(lines[len(lines) // 2 :]))
    assert file.pop("file") == str(single)
    assert folder.pop("folder") == str(tiny)
    assert file == folder


def test_conversion_may_say_what_the_model_predicts(tiny, tmp_path):
    assert cli.main(["convert", str(tiny), str(tmp_path / "v"), "--prediction-type", "v_prediction"]) == 0
    assert '"v_prediction"' in (tmp_path / "v/scheduler/scheduler_config.json").read_text()


def test_conversion_may_ask_for_moving_averages(tiny, tmp_path, capsys):
    assert cli.main(["convert", str(tiny), str(tmp_path / "averages"), "--ema"]) == 1
    assert "Only single files hold moving averages" in capsys.readouterr().err


def test_conversion_never_replaces_anything(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(stable_diffusion, "StableDiffusion", None)
    for path in (tiny, tmp_path / "file.safetensors", tmp_path):
        (tmp_path / "file.safetensors").write_text("precious")
        assert cli.main(["convert", str(tiny), str(path)]) == 1
        assert "There is something already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["convert", str(tiny), str(tmp_path / "file.ckpt")])
    assert "must be a folder or end in .safetensors" in capsys.readouterr().err


def test_info_of_an_unknown_model(capsys):
    assert cli.main(["info", "nonsense"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "There is no such model" in err


def test_help_comes_without_keras():
    command = [sys.executable, "-X", "importtime", "-m", "keras_diffusion", "generate", "--help"]
    child = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "--guidance" in child.stdout
    imported = {line.rpartition("|")[2].strip() for line in child.stderr.splitlines()}
    assert "argparse" in imported
    assert not imported & {"keras", "numpy", "PIL"}


def test_the_bundled_model_draws(tmp_path):
    """As a newcomer runs it: in a process of its own, in which nothing has silenced the backend."""
    environment = {key: value for key, value in os.environ.items() if key != terminal.LOG_LEVEL}
    command = [sys.executable, "-m", "keras_diffusion", "generate", "a slice of pizza", "--output", "pizza.png"]
    child = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (child.returncode, child.stdout) == (0, "pizza.png\n")
    assert re.fullmatch(r"seed (\d+) \(--seed \1 makes the same again\)\n", child.stderr)
    picture = pixels(tmp_path / "pizza.png")
    assert picture.shape == (64, 64, 3)
    assert picture.std() > 10


@pytest.mark.parametrize(
    ("words", "method", "saved", "options"),
    [
        ("lora photos --output NEW.safetensors --flip", "train_lora", ("save_lora", "kohya"), {"flip": True}),
        (
            "embedding photos --output NEW.safetensors --word <toy> --initial-word toy --format webui",
            "train_textual_inversion",
            ("save_textual_inversion", "webui"),
            {"word": "<toy>", "initial_word": "toy"},
        ),
        (
            "controlnet photos --output NEW --condition-folder edges",
            "train_controlnet",
            ("save_controlnet",),
            {"condition_folder": Path("edges")},
        ),
        (
            "lcm photos --output NEW.safetensors --rank 4 --buckets 3 --rematerialize",
            "train_lcm_lora",
            ("save_lora", "kohya"),
            {"rank": 4, "buckets": 3, "rematerialize": True},
        ),
        ("full photos --output NEW --ema 0.99", "train_diffusion_model", ("save_to_preset",), {"ema": 0.99}),
        (
            "dreambooth photos --output NEW.safetensors --class-caption dog --class-images 5 --text-encoder",
            "train_diffusion_model",
            ("export_checkpoint",),
            {"class_caption": "dog", "class_images": 5, "text_encoder": True},
        ),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_train_hands_its_options_on_and_saves(words, method, saved, options, tmp_path, monkeypatch, capsys):
    calls = []

    class Model:
        def __getattr__(self, name):
            return lambda *given, **options: calls.append((name, given, options)) or self

    monkeypatch.setattr("keras_diffusion.cli.train.load", lambda **_: Model())
    words = ["train", *words.replace("NEW", str(tmp_path / "new")).split(), "--steps", "5", "--caption", "a dog"]
    output = Path(words[words.index("--output") + 1])
    assert cli.main(words) == 0
    common = {"steps": 5, "caption": "a dog"}
    assert calls == [(method, (Path("photos"),), {**options, **common}), (saved[0], (output, *saved[1:]), {})]
    assert capsys.readouterr().out.strip() == str(output)
    output.touch()
    assert cli.main(words) == 1


def test_all_that_the_library_does_can_be_asked_for(generate, fake, monkeypatch):
    loaded = []
    monkeypatch.setattr(fake, "load_lora", lambda self, *given: loaded.append(given), raising=False)
    monkeypatch.setattr(fake, "load_textual_inversion", lambda self, *given: loaded.append(given), raising=False)
    monkeypatch.setattr(fake, "load_ip_adapter", lambda self, *given: loaded.append(given), raising=False)
    for name in ("load_controlnet", "load_t2i_adapter"):
        monkeypatch.setattr(fake, name, lambda self, path: f"network of {path}", raising=False)
    for name in ("a.png", "mask.png", "edges.png"):
        Image.fromarray(IMAGES[0]).save(name)
    for name in ("canny.pth", "sketch.pth", "style.safetensors", "word.pt", "vae.pt", "q.gguf", "plus.bin", "vit.bin"):
        Path(name).touch()
    Path("prompts.txt").write_text("a cat\n\na dög\n", "utf-8")
    options = "--prompts prompts.txt --batch-size 2 --seed 7 --steps 3 --image a.png --mask mask.png --resize crop "
    options += "--control canny.pth=edges.png=0.5 --control canny.pth=a.png --lora style.safetensors=0.8 "
    options += "--ip-adapter plus.bin=vit.bin --image-prompt edges.png --image-prompt a.png=0.6=mask.png=plus "
    options += "--embedding word.pt --vae vae.pt --jit-compile off --t2i-adapter sketch.pth=a.png "
    options += "--diffusion-model q.gguf"
    assert generate(*options.split()) == 0

    [model] = fake.made
    assert (model.built["jit_compile"], model.built["vae"]) == (False, Path("vae.pt"))
    assert model.built["diffusion_model"] == Path("q.gguf")
    assert loaded == [(Path("style.safetensors"), 0.8), (Path("word.pt"),), (Path("plus.bin"), Path("vit.bin"))]
    expected = {"prompt": "a dög", "seed": 9, "image": Path("a.png"), "mask": Path("mask.png"), "resize": "crop"}
    expected |= {"strength": 1.0, "batch_size": 2}
    expected["control"] = [
        ("network of canny.pth", Path("edges.png"), 0.5),
        ("network of canny.pth", Path("a.png"), 1.0),
        ("network of sketch.pth", Path("a.png"), 1.0),
    ]
    expected["image_prompt"] = [
        (Path("edges.png"), 1.0, None, None),
        (Path("a.png"), 0.6, Path("mask.png"), "plus"),
    ]
    assert {name: model.call.get(name) for name in expected} == expected
    assert sorted(path.name for path in Path().glob("pizza-*")) == [f"pizza-{i}.png" for i in (1, 2, 3, 4)]
    found = metadata.read("pizza-4.png")
    assert [found[name] for name in ("Prompt", "Seed", "Size")] == ["a dög", "10", "24x16"]
    assert (found["Model"], found.get("Model hash")) == ("q.gguf", None)
    assert found["ControlNet 0"] == "Module: none, Model: canny, Weight: 0.5"
    assert found["ControlNet 4"] == "Module: ip-adapter-auto, Model: plus, Weight: 0.6"
    others = ["Denoising strength", "Lora files"]
    assert metadata.not_followed(found) == [*(f"ControlNet {i}" for i in range(5)), *others]


def test_a_controlnet_is_followed_again_as_closely(generate, fake, monkeypatch, capsys):
    monkeypatch.setattr(fake, "load_controlnet", lambda self, path: path.stem, raising=False)
    for name in ("edges.png", "canny.pth", "depth.pth"):
        Path(name).touch()
    assert generate("--control", "canny.pth=edges.png=0.3", "--control", "depth.pth=edges.png", "--guess-mode") == 0
    assert generate("--control", "canny.pth=edges.png", "--like", "pizza.png") == 0
    assert "not followed: ControlNet 1\n" in capsys.readouterr().err
    first, again = (model.call for model in fake.made)
    assert again["control"] == first["control"][:1] == [("canny", Path("edges.png"), 0.3)]
    assert first["guess_mode"] is again["guess_mode"] is True
    others = ("Module: canny, Model: x, Weight: 1", "Module: none, Model: x, Weight: 1, Guidance Start: 0.5", "x")
    assert metadata.read_controls({f"ControlNet {i}": unit for i, unit in enumerate(others)}) == {}


def test_variations_are_drawn_again(generate, fake):
    options = "--seed 5 --batch-size 2 --variation-seed 8 --variation-strength 0.2 --seed-resize-from 64 32"
    assert generate(*options.split()) == 0
    assert generate("--like", "pizza-2.png") == 0
    first, again = (model.call for model in fake.made)
    assert (first["seed"], first["variation_seed"], first["batch_size"]) == (5, 8, 2)
    assert (again["seed"], again["variation_seed"], again["variation_strength"]) == (5, 9, 0.2)
    assert tuple(again["seed_resize_from"]) == (64, 32)
    made = metadata.read("pizza-2.png")
    assert not metadata.not_followed(made)
    assert metadata.call_arguments(made | {"Variation seed": "-1"}).get("variation_seed") is None
    assert "variation_seed" not in metadata.call_arguments(made | {"Variation seed strength": "0"})


def test_a_second_pass_is_drawn_again(generate, fake):
    assert generate("--hires", "1.5", "--hires-strength", "0.4", "--width", "24", "--height", "16") == 0
    assert generate("--like", "pizza.png") == 0
    for model in fake.made:
        assert (model.call["hires"], model.call["hires_strength"]) == (1.5, 0.4)
    assert not metadata.not_followed(metadata.read("pizza.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--mask a.png", "need an --image"),
        ("--image none.png", "There is no such file"),
        ("--control one", "invalid control value"),
        ("--guess-mode", "needs a --control"),
        ("--variation-seed 1", "needs --variation-strength"),
        ("--variation-strength 2", "a number from 0 to 1"),
        ("--image-prompt a.png", "needs an --ip-adapter"),
        ("--image-prompt a.png=b", "invalid image_prompt value"),
        ("--ip-adapter none.bin", "There is no such file"),
        ("--lora a=b", "invalid with_scale value"),
        ("--jit-compile fast", "invalid choice"),
    ],
)
def test_what_makes_no_sense_is_refused_at_once(generate, fake, capsys, options, message):
    with pytest.raises(SystemExit):
        generate(*options.split())
    assert message in capsys.readouterr().err
    assert not fake.made


def test_train_writes_what_the_kind_is():
    """The name of what is written must be that of a file for a LoRA, of a folder for a ControlNet."""
    for words in ("lora photos --output dog.ckpt", "controlnet photos --output dog.safetensors --condition-folder x"):
        with pytest.raises(SystemExit):
            cli.main(["train", *words.split()])
