import numpy as np
import pytest

from keras_diffusion.sampling import noise

from .networks import cases, make_model, require_same

openvino = pytest.importorskip("openvino")
genai = pytest.importorskip("openvino_genai")
exporting = pytest.importorskip("keras_diffusion.exporting.openvino")


class Given(genai.Generator):
    """Gives the noise that a seed stands for here."""

    def __init__(self, seed):
        super().__init__()
        self.seed = seed

    def next(self):
        raise NotImplementedError

    def randn_tensor(self, shape):
        _, channels, height, width = shape
        array = noise.starting_noise([self.seed], (height, width, channels)).transpose(0, 3, 1, 2)
        return openvino.Tensor(np.ascontiguousarray(array))


def test_networks_and_pipeline_give_the_same(tmp_path):
    model, folder = make_model(), tmp_path / "model"
    model.export(folder, "openvino")
    for part, inputs, live in cases(model, timestep=np.array([500], "int64")):
        network = openvino.Core().compile_model(
            folder / part / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        require_same(part, network(inputs)[0], live)
    pipeline = genai.Text2ImagePipeline(folder, "CPU", INFERENCE_PRECISION_HINT="f32")
    call = {"negative_prompt": "blue", "num_inference_steps": 3, "guidance_scale": 3.0}
    images = pipeline.generate("a cat", **call, height=16, width=12, generator=Given(5)).data
    live = model.text_to_image("a cat", "blue", None, 3, 3.0, seed=5, img_height=16, img_width=12, verbose=0)
    assert live.std() > 10
    np.testing.assert_allclose(images, live.astype(int), atol=1)  # it cuts fractions off


def test_an_unknown_scheduler_becomes_ddim(caplog):
    config = {"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "linspace", "beta_start": 0.1}
    configs = exporting.with_known_scheduler(
        {"scheduler": config, "model_index": {"scheduler": ["diffusers", config["_class_name"]]}}
    )
    assert configs["model_index"] == {"scheduler": ["diffusers", "DDIMScheduler"]}
    assert configs["scheduler"] == {
        "_class_name": "DDIMScheduler",
        "timestep_spacing": "leading",
        "set_alpha_to_one": False,
        "beta_start": 0.1,
    }
    assert "DPMSolverMultistepScheduler" in caplog.text
    assert exporting.with_known_scheduler(configs) is configs
