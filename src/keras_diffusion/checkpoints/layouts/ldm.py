"""Knows what original (LDM) files hold beside the tensors in the table of names, and infers their architecture."""

import re
from dataclasses import replace
from itertools import count

from keras_diffusion.architectures import (
    SD15,
    SDXL,
    SDXL_REFINER,
    AutoencoderShape,
    DiffusionModelShape,
    Level,
    TextEncoderShape,
)
from keras_diffusion.checkpoints.formats.tensors import DTYPES, read, thirds
from keras_diffusion.checkpoints.mapping.loading import families
from keras_diffusion.errors import CheckpointMismatchError

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer."
SGM = "conditioner.embedders."  # of SDXL
UNPREFIXED = re.compile(re.escape(CLIP) + r"(?=embeddings\.|encoder\.|final_layer_norm\.)")
INSIDE = re.compile(  # how names of tensors begin that are in a part of the model
    r"model\.diffusion_model\.|first_stage_model\.(encoder|decoder|quant_conv|post_quant_conv)\."
    r"|cond_stage_model\.transformer\.(text_model\.)?(embeddings|encoder|final_layer_norm)\."
    r"|cond_stage_model\.model\.(token_embedding|positional_embedding|transformer|ln_final)\b"
    r"|conditioner\.embedders\.[01]\.(transformer\.text_model|model)\."
    r"|.*lora"
)
VELOCITY, ZERO_SNR = "v_pred", "ztsnr"  # tensors without values, which say what the model predicts and its schedule
LEFTOVERS = re.compile(  # names of tensors without a meaning here
    r"(sqrt_|log_)?(one_minus_|recip_|recipm1_)?alphas_cumprod(_prev)?|betas|logvar|scale_factor|lvlb_weights"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])"
    r"|v_pred|ztsnr|model_ema\.(decay|num_updates)|first_stage_model\.(model_ema|loss)\..+"
    r"|cond_stage_model\.(model\.)?(logit_scale|text_projection|attn_mask)"
    r"|conditioner\.embedders\.[01]\.(model\.)?(logit_scale|attn_mask|transformer\.text_model\.embeddings\.position_ids)"
    r"|cond_stage_model\.model\.transformer\.resblocks\.23\..+"
    r"|cond_stage_model\.transformer\.(text_model\.embeddings\.position_ids|text_projection\.weight)"
)
OPEN_CLIP_LAYERS = 23  # of the 24 of ViT-H/14
HEAD_SIZE = 64  # of the text encoders, and of SD 2's UNet
SD1_HEADS = 8
EPSILON_OR_VELOCITY = f"{UNET}output_blocks.11.1.transformer_blocks.0.norm1.bias"
VELOCITY_DEVIATION = 0.09


def canonical(tensors):
    """The tensors by the names of the table: the text encoder with its prefix, and OpenCLIP's in_proj in thirds.

    Where a tensor has both its old and its present name, it keeps the old one.
    """
    renamed = {}
    for name, tensor in tensors.items():
        present = UNPREFIXED.sub(f"{CLIP}text_model.", name, count=1)
        if name.endswith((".in_proj_weight", ".in_proj_bias")) and tensor.shape and tensor.shape[0] % 3 == 0:
            renamed.update({f"{name}[{i}]": third for i, third in enumerate(thirds(tensor))})
        else:
            renamed[name if present in tensors else present] = tensor
    return renamed


def averaged(name):
    """The name of the moving average (EMA) of a tensor of the UNet."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def averages(tensors):
    """The tensors with the moving averages (EMA) of the UNet in place of its weights.

    Raises:
        CheckpointMismatchError: If one is missing.
    """
    names = {name: averaged(name) for name in tensors if name.startswith(UNET)}
    if missing := [average for average in names.values() if average not in tensors]:
        raise CheckpointMismatchError(
            f"The file does not hold moving averages (EMA) beside its weights: {len(missing)} of {len(names)} are "
            f"missing. Load it with ema=False. Received: ema=True",
            missing=missing,
        )
    return tensors | {name: tensors[average] for name, average in names.items()}


def lacks_vae(tensors):
    """Tells whether there is a UNet and no VAE."""
    return any(name.startswith(UNET) for name in tensors) and not any(name.startswith(VAE) for name in tensors)


def architecture(tensors):
    """Infers an architecture from names and shapes.

    Group norms have 32 groups, heads are those of Stable Diffusion 1 (8) or of 2 and XL (64 channels each), and the
    prediction type is that of Stable Diffusion 1.

    Args:
        tensors: A dict from canonical names to `Tensor`.

    Returns:
        An `Architecture`; whether all of its tensors are there is not checked.

    Raises:
        CheckpointMismatchError: If a tensor is missing, without which there is no telling.
    """
    path = str(next(iter(tensors.values())).path) if tensors else ""

    def side(name, axis=0):
        shape = tensors[name].shape if name in tensors else ()
        if len(shape) <= axis:
            raise CheckpointMismatchError(
                f"This is no whole model of Stable Diffusion 1, 2 or XL: it looks like "
                f"{', '.join(families(tensors)) or 'nothing known'} and lacks {name}. Give a whole model. "
                f"Received: {len(tensors)} tensors, path={path!r:.200}",
                missing=[name],
            )
        return shape[axis]

    def first(pattern, otherwise):
        """The first name of the UNet that ends in a pattern."""
        return next((name for name in tensors if name.startswith(UNET) and re.search(f"{pattern}$", name)), otherwise)

    def number(pattern):
        """Counts the names of a pattern, from 0."""
        return next(i for i in count() if pattern.format(i) not in tensors)

    def text_encoder(prefix, layers=None, **options):
        """The shape of the text encoder whose names begin with `prefix`; at most `layers` of its layers are used."""
        if open_clip := f"{prefix}model.token_embedding.weight" in tensors:
            tokens, positions = f"{prefix}model.token_embedding.weight", f"{prefix}model.positional_embedding"
            pattern = prefix + "model.transformer.resblocks.{}.ln_1.weight"
        else:
            clip = f"{prefix}transformer.text_model."
            tokens, positions = (f"{clip}embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
            pattern = clip + "encoder.layers.{}.layer_norm1.weight"
        width, count = side(tokens, 1), number(pattern)
        return TextEncoderShape(
            width=width,
            layers=min(count, layers) if open_clip and layers else count,
            heads=max(1, width // HEAD_SIZE),
            activation="gelu" if open_clip else "quick_gelu",
            pad_token=0 if open_clip else 49407,
            length=side(positions),
            vocabulary=side(tokens),
            **options,
        )

    xl = [name for name in ("0.", "1.") if any(tensor.startswith(SGM + name) for tensor in tensors)]
    if xl:
        last = f"{SGM}{xl[-1]}"
        projection = side(f"{last}model.text_projection", 1)
        encoders = {
            "text_encoder": text_encoder(f"{SGM}0.", penultimate=True) if len(xl) > 1 else None,
            "text_encoder_2": text_encoder(last, penultimate=True, projection=projection),
        }
    else:
        encoders = {"text_encoder": text_encoder("cond_stage_model.", OPEN_CLIP_LAYERS)}
    own_heads = not xl and encoders["text_encoder"].activation == "quick_gelu"

    def depths(blocks):
        """The transformer blocks of each of some blocks: one number if they are equal."""
        found = tuple(number(block + ".1.transformer_blocks.{}.norm1.weight") for block in blocks)
        return found[0] if len(set(found)) == 1 else found

    blocks = next(i for i in count() if f"{UNET}input_blocks.{i + 1}.0.in_layers.2.weight" not in tensors)
    downsamplers = next(i for i in count() if f"{UNET}input_blocks.{(i + 1) * (blocks + 1)}.0.op.weight" not in tensors)
    levels = []
    for i in range(downsamplers + 1):
        down = [f"{UNET}input_blocks.{1 + i * (blocks + 1) + j}" for j in range(blocks)]
        up = [f"{UNET}output_blocks.{(downsamplers - i) * (blocks + 1) + j}" for j in range(blocks + 1)]
        channels = side(f"{UNET}input_blocks.{1 + i * (blocks + 1)}.0.in_layers.2.weight")
        level = Level(channels, SD1_HEADS if own_heads else max(1, channels // HEAD_SIZE), depths(down))
        levels.append(level if level.depth == depths(up) else level._replace(depth_up=depths(up)))
    middle = [number(f"{UNET}middle_block.{i}.transformer_blocks." + "{}.norm1.weight") for i in range(3)]
    residual = [f"{UNET}middle_block.{i}.in_layers.2.weight" in tensors for i in range(3)]
    added = side(f"{UNET}label_emb.0.0.weight", 1) if xl else 0
    guidance = f"{UNET}time_embedding.cond_proj.weight"
    to_k = first(r"attn2\.to_k\.weight", f"{UNET}middle_block.1.transformer_blocks.0.attn2.to_k.weight")
    diffusion_model = DiffusionModelShape(
        levels=tuple(levels),
        blocks=blocks,
        context=side(to_k, 1),
        in_channels=side(f"{UNET}input_blocks.0.0.weight", 1),
        out_channels=side(f"{UNET}out.2.weight"),
        linear_projection=len(tensors[name].shape) == 2
        if (name := first(r"\.proj_in\.weight", "")) in tensors
        else False,
        middle=(middle[1], 0) if residual[2] else (0,) * any(residual),
        guidance_width=side(guidance, 1) if guidance in tensors else 0,
        **({"added": added, "id_width": (added - projection) // (6 if len(xl) > 1 else 5)} if xl else {}),
    )

    conv = VAE + "encoder.down.{}.block.{}.conv1.weight"
    known = SDXL if len(xl) > 1 else SDXL_REFINER if xl else SD15
    autoencoder = AutoencoderShape()
    if not lacks_vae(tensors):
        autoencoder = AutoencoderShape(
            channels=tuple(side(conv.format(i, 0)) for i in range(max(1, number(conv.format("{}", 0))))),
            blocks=number(conv.format(0, "{}")),
            latent_channels=side(f"{VAE}post_quant_conv.weight", 1),
        )
    return replace(
        known,
        name="custom",
        **encoders,
        diffusion_model=diffusion_model,
        autoencoder=replace(autoencoder, scaling_factor=known.autoencoder.scaling_factor),
    )


def predicts_velocity(tensors):
    """Tells whether a model of Stable Diffusion 2 looks like one that predicts v.

    Nothing in such a file says so. The deviation of one bias differs between the published models; the threshold is
    ComfyUI's (`SD20.model_type`).
    """
    bias = tensors.get(EPSILON_OR_VELOCITY)
    return bool(bias and bias.dtype in DTYPES and bias.size < 2**16 and read(bias).std() > VELOCITY_DEVIATION)
