"""Reads and writes a whole model in one file, in the layout of the original (LDM) code.

Source: the files of CompVis' and Stability's `latent-diffusion`, as diffusers' `from_single_file` reads them.
"""

import json
import logging
from dataclasses import replace
from pathlib import Path

from keras_diffusion.checkpoints.formats import tensor_index
from keras_diffusion.checkpoints.layouts import ldm, sd_cpp_names
from keras_diffusion.checkpoints.layouts.diffusers_configs import from_diffusers, to_diffusers
from keras_diffusion.checkpoints.layouts.files import new_file, parts
from keras_diffusion.checkpoints.layouts.saving import describe, write_weights
from keras_diffusion.checkpoints.mapping.loading import Part, find_targets, load, warn_of_unused
from keras_diffusion.checkpoints.mapping.names import NETWORKS, rows
from keras_diffusion.errors import CheckpointMismatchError, CorruptCheckpointError

OURS = "keras_diffusion"  # in the metadata: diffusers' configuration files, as JSON
PREDICTION_TYPE = "modelspec.prediction_type"  # in the metadata of other tools
PREDICTION_TYPES = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}
VELOCITY_SIZE = 768  # pixels; what Stable Diffusion 2 with v prediction was trained at

logger = logging.getLogger(__name__)


class SingleFile:
    """A whole Stable Diffusion 1 or 2 model in a file: safetensors or a pickle (.ckpt), told by its content.

    Args:
        path: The file.
        prediction_type: What the diffusion model predicts, "epsilon", "v_prediction" or "sample". None takes the
            file's word; where it has none, Stable Diffusion 1 predicts "epsilon", and Stable Diffusion 2 what its
            weights look like, which is logged as a warning.
        ema: Whether to take the moving averages (EMA) of the diffusion model's weights, which some files hold beside
            the weights. False takes the weights, as diffusers does.
        optional: Parts that may be missing, because they are given otherwise: only "vae" is looked at.

    Attributes:
        path: The file, a `Path`.
        architecture: The `Architecture`, as written by `save` or inferred from the shapes of the tensors.
        scheduler_config: A dict, the contents of a scheduler_config.json.

    Raises:
        FileNotFoundError: If there is no file.
        CorruptCheckpointError: If the file is damaged.
        UnsafeCheckpointError: If a pickle asks for something that only hostile ones ask for.
        CheckpointMismatchError: If the file is of another family, no whole model, or lacks the averages asked for.
    """

    def __init__(self, path, prediction_type=None, ema=False, optional=()):
        self.path = Path(path)
        self._tensors = ldm.canonical(sd_cpp_names.original(tensor_index.index(self.path)))
        if ema:
            self._tensors = ldm.averages(self._tensors)
        metadata = tensor_index.metadata(self.path)
        if OURS in metadata:
            configs = parse(self.path, metadata[OURS])
        else:
            marked = "v_prediction" if ldm.VELOCITY in self._tensors else None
            prediction_type = prediction_type or PREDICTION_TYPES.get(metadata.get(PREDICTION_TYPE)) or marked
            configs = self._inferred(prediction_type)
            if ldm.ZERO_SNR in self._tensors:
                configs["scheduler"]["rescale_betas_zero_snr"] = True
        if prediction_type is not None:
            configs["scheduler"]["prediction_type"] = prediction_type
        self.architecture = from_diffusers(configs)
        self.scheduler_config = configs["scheduler"]
        if "vae" not in optional and ldm.lacks_vae(self._tensors):
            raise CheckpointMismatchError(
                f"The file holds a diffusion model and no VAE. Give one as well: from_preset({self.path.name!r}, "
                f"vae=…), a folder or a file. Received: path={str(path)!r:.200}"
            )

    def load(self, **networks):
        """Fills networks with the weights of the file: all of them or, on an error, none.

        Tensors are stored in float32, float16 or bfloat16 and become the dtype of their variable.

        Args:
            **networks: Any networks of this `architecture`, by name.

        Raises:
            CheckpointMismatchError: If anything does not fit: every missing, unexpected, mis-shaped, not finite or
                overflowing tensor is named.
            CorruptCheckpointError: If the file changes while it is read.
            TypeError: If a network has another name.
        """
        wanted, differences = find_targets(networks, self.architecture, ldm=True)
        targets = [target for part in wanted.values() for target in part]
        load([Part("single file", self._tensors, targets, self._known())], differences)

    def tensors(self, part):
        """Lists the tensors of a part, such as "text_encoder", "unet" or "vae", by the names in the table of names."""
        networks = (name for name in self.architecture.networks if NETWORKS[name][0] == part)
        names = {row.ldm for name in networks for row in rows(name, self.architecture)}
        return {name: tensor for name, tensor in self._tensors.items() if name in names}

    def _known(self):
        """Names that may be in the file although no network asks for them."""
        names = {row.ldm for network in self.architecture.networks for row in rows(network, self.architecture)}
        averages = {ldm.averaged(name) for name in names if name.startswith(ldm.UNET)}
        known = names | averages | set(filter(ldm.LEFTOVERS.fullmatch, self._tensors))
        return known | warn_of_unused(self.path, self._tensors, ldm.INSIDE, known)

    def _inferred(self, prediction_type):
        """The configuration files of the model that names and shapes describe."""
        architecture = ldm.architecture(self._tensors)
        second = not architecture.text_encoder_2 and architecture.text_encoder.activation == "gelu"
        if prediction_type is None and second and architecture.diffusion_model.in_channels == 4:
            prediction_type = "v_prediction" if ldm.predicts_velocity(self._tensors) else "epsilon"
            logger.warning(
                "%s does not say what it predicts; its weights look like those of a model with %s. If images are noise "
                "or pale, pass prediction_type=%r.",
                self.path,
                prediction_type,
                "epsilon" if prediction_type == "v_prediction" else "v_prediction",
            )
        if second and prediction_type == "v_prediction":
            architecture = replace(architecture, image_size=VELOCITY_SIZE)
        return to_diffusers(replace(architecture, prediction_type=prediction_type or "epsilon"))


def parse(path, text):
    """The configuration files that `save` put into a file's metadata."""
    try:
        configs = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptCheckpointError(f"{path} is damaged: its metadata is no JSON: {error!s:.200}.") from error
    index = configs.get("model_index") if isinstance(configs, dict) else None
    needed = parts(index if isinstance(index, dict) else {})
    if not isinstance(configs, dict) or not all(isinstance(configs.get(part), dict) for part in needed):
        raise CorruptCheckpointError(
            f"{path} is damaged: its metadata must describe {', '.join(needed)}. Received: {text!r:.200}"
        )
    return configs


def save(path, architecture, dtype="float32", scheduler_config=None, **networks):
    """Writes a model as one safetensors file that `StableDiffusionPipeline.from_single_file` of diffusers loads.

    The file appears when it is complete; the same weights make the same bytes.

    Args:
        path: The file. There may be nothing yet.
        architecture: The `Architecture` of the networks, which the file's metadata records.
        dtype: How tensors are stored, "float32", "float16" or "bfloat16".
        scheduler_config: A dict, the contents of a scheduler_config.json; None takes DDIM on Stable Diffusion's
            schedule. The metadata records it.
        **networks: All networks of the architecture, by name.

    Raises:
        FileExistsError: If there is something at `path`.
        TypeError: If a network is missing or has another name.
        ValueError: If `dtype` is another one, a network is of another architecture, diffusers has no such
            architecture, or a weight is not finite in `dtype`.
    """
    configs = describe(architecture, dtype, scheduler_config, networks)
    wanted, _ = find_targets(networks, architecture, ldm=True)
    targets = [target for part in wanted.values() for target in part]
    with new_file(path) as temporary:
        write_weights(temporary, targets, dtype, metadata={OURS: json.dumps(configs, sort_keys=True)})
