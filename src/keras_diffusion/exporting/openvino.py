"""Writes a folder for OpenVINO GenAI's image pipelines."""

import logging
import tempfile
from pathlib import Path

from openvino import Core, save_model
from openvino_tokenizers import convert_tokenizer
from transformers import AutoTokenizer

from keras_diffusion.exporting.onnx import graphs, write_folder

TIMESTEP = ("int64", [1])  # what OpenVINO GenAI gives
SCHEDULERS = ("DDIM", "EulerAncestralDiscrete", "EulerDiscrete", "LCM", "LMSDiscrete", "PNDM")  # that it knows

logger = logging.getLogger(__name__)


def write(folder, parts):
    """Writes the networks, the configuration files and the tokenizer, as a model too.

    Args:
        folder: An empty folder.
        parts: `export.Parts`.
    """
    write_folder(folder, parts._replace(configs=with_known_scheduler(parts.configs)))
    for name, graph in graphs(parts._replace(dtype="float32"), TIMESTEP):
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / "model.onnx"
            graph.save(path)
            half = parts.dtype == "float16"
            save_model(Core().read_model(path), folder / name / "openvino_model.xml", compress_to_fp16=half)
    tokenizer = convert_tokenizer(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    save_model(tokenizer, folder / "tokenizer" / "openvino_tokenizer.xml")


def with_known_scheduler(configs):
    """Returns configurations with DDIM on the same noise schedule, if OpenVINO GenAI does not know the scheduler."""
    given = configs["scheduler"]["_class_name"]
    if given.removesuffix("Scheduler") in SCHEDULERS:
        return configs
    logger.warning("OpenVINO GenAI has no %s; the folder names DDIMScheduler, which draws other images.", given)
    scheduler = {"set_alpha_to_one": False, **configs["scheduler"], "_class_name": "DDIMScheduler"}
    if scheduler.get("timestep_spacing") == "linspace":
        scheduler["timestep_spacing"] = "leading"  # DDIM steps as far as those lie apart
    index = {**configs["model_index"], "scheduler": ["diffusers", "DDIMScheduler"]}
    return {**configs, "scheduler": scheduler, "model_index": index}
