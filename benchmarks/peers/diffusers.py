"""diffusers and transformers, in torch and converted to OpenVINO with static shapes; on a GPU if torch sees one."""

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from peers import CHANNELS, FACTOR, GUIDANCE, LENGTH, PROMPT, RANK, TRAINING_STEPS, WIDTH, arrays, profiles


def step(size, batch, dtype, convert, **_):
    import torch
    from diffusers import DDIMScheduler, UNet2DConditionModel

    latents, context = (on_device(torch.from_numpy(x), dtype) for x in arrays(size, batch))
    latents = latents.permute(0, 3, 1, 2).contiguous()
    unet = randomized(lambda: UNet2DConditionModel(sample_size=size // FACTOR, cross_attention_dim=WIDTH), dtype)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(1000)
    timesteps = iter(scheduler.timesteps)
    example = torch.cat([latents] * 2), torch.tensor(1), context
    predict = CONVERTERS[convert](lambda x, t, context: unet(x, t, context, return_dict=False)[0], unet, example)

    def step():
        nonlocal latents
        timestep = next(timesteps)
        negative, positive = predict(torch.cat([latents] * 2), timestep, context).chunk(2)
        latents = scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents).prev_sample
        return latents.cpu()

    return step


def decode(size, batch, dtype, convert, **_):
    import torch
    from diffusers.models.autoencoders.vae import Decoder

    latents = on_device(torch.from_numpy(arrays(size, batch)[0]), dtype).permute(0, 3, 1, 2).contiguous()
    shape = {"up_block_types": ("UpDecoderBlock2D",) * 4, "block_out_channels": (128, 256, 512, 512)}
    decoder = randomized(lambda: Decoder(in_channels=CHANNELS, layers_per_block=2, **shape), dtype)
    decode = CONVERTERS[convert](decoder, decoder, (latents,))
    rounded = lambda image: ((image + 1) * 127.5).clip(0, 255).round().to(torch.uint8)  # noqa: E731
    return lambda: rounded(decode(latents)).permute(0, 2, 3, 1).cpu().numpy()


def encode(batch, dtype, convert, **_):
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    tokens = torch.zeros((batch, LENGTH), dtype=torch.int64)
    shape = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 12}
    model = randomized(lambda: CLIPTextModel(CLIPTextConfig(**shape)), dtype)
    encode = CONVERTERS[convert](lambda tokens: model(tokens)[0], model, (tokens.to(model.device),))
    return lambda: encode(tokens.to(model.device)).cpu()


def image(size, batch, steps, dtype, preset, convert, **_):
    """A pipeline whose two large networks are converted; it calls them with more arguments than it needs."""
    import torch

    pipeline = pretrained(preset, dtype)
    unet, vae = pipeline.unet, pipeline.vae
    latents, context = (on_device(torch.from_numpy(x), dtype) for x in arrays(size, batch))
    latents = latents.permute(0, 3, 1, 2).contiguous()
    predicts, decodes, convert = unet.forward, vae.decode, CONVERTERS[convert]
    example = torch.cat([latents] * 2), torch.tensor(1), context
    predict = convert(lambda x, t, context: predicts(x, t, context, return_dict=False)[0], unet, example)
    decode = convert(lambda latents: decodes(latents, return_dict=False)[0], vae, (latents,))
    unet.forward = lambda x, t, encoder_hidden_states, **_: (predict(x, t, encoder_hidden_states),)
    vae.decode = lambda latents, **_: (decode(latents),)
    options = {"num_images_per_prompt": batch, "num_inference_steps": steps, "output_type": "np"}
    return lambda: pipeline(PROMPT, height=size, width=size, **options)


def cold(batch, steps, dtype, **_):
    pipeline = pretrained(bundled(), dtype)
    options = {"num_images_per_prompt": batch, "num_inference_steps": steps, "output_type": "np"}
    return lambda: pipeline(PROMPT, **options)


def gpu(model, size, steps, dtype, compiled):
    """Answers the questions of gpu.py, by a pipeline as its users build it; compiled as its documentation advises."""
    import torch

    pipeline = {"sd15": sd15, "sdxl": sdxl}[model](dtype)
    pipeline.set_progress_bar_config(disable=True)
    unet, trained = pipeline.unet, []
    if compiled:
        for module in (pipeline.unet, pipeline.vae):
            module.to(memory_format=torch.channels_last)
        pipeline.unet = torch.compile(pipeline.unet, mode="reduce-overhead", fullgraph=True)
        pipeline.vae.decode = torch.compile(pipeline.vae.decode, mode="reduce-overhead", fullgraph=True)

    def draw(batch, output):
        options = {"num_images_per_prompt": batch, "num_inference_steps": steps, "output_type": output}
        drawn = pipeline(PROMPT, height=size, width=size, guidance_scale=GUIDANCE, **options).images
        return drawn.cpu() if output == "latent" else drawn

    def image(batch):
        draw(batch, "np")
        return peak()

    def decode(batch):
        latents = on_device(torch.from_numpy(arrays(size, batch)[0]), dtype).permute(0, 3, 1, 2).contiguous()
        image = pipeline.vae.decode(latents, return_dict=False)[0]
        pipeline.image_processor.postprocess(image, output_type="np")

    def train(batch):
        if not trained:
            trained.append(lora_step(unet, dtype, compiled))
        latents, context = (on_device(torch.from_numpy(x), dtype) for x in arrays(size, batch))
        with torch.enable_grad():
            for _ in range(TRAINING_STEPS):
                loss = trained[0](latents.permute(0, 3, 1, 2), context[:batch])
        return {"loss": float(loss), **peak()}

    return {
        "latents": lambda batch: {"finite": bool(torch.isfinite(draw(batch, "latent")).all())},
        "image": image,
        "decode": decode,
        "train": train,
        "profile": lambda batch: profiles.of_torch(lambda: draw(batch, "latent")),
    }


def sd15(dtype):
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

    return StableDiffusionPipeline(
        unet=small(randomized(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=WIDTH), dtype)),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
        **shared(dtype),
    )


def sdxl(dtype):
    from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")}
    blocks |= {"block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10)}
    blocks |= {"attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True}
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
    added |= {"projection_class_embeddings_input_dim": 2816}
    text = {"hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20, "num_hidden_layers": 32}
    parts = shared(dtype)
    return StableDiffusionXLPipeline(
        unet=small(randomized(lambda: UNet2DConditionModel(sample_size=128, **blocks, **added), dtype)),
        text_encoder_2=randomized(
            lambda: CLIPTextModelWithProjection(CLIPTextConfig(**text, projection_dim=1280, hidden_act="gelu")), dtype
        ),
        tokenizer_2=parts["tokenizer"],
        add_watermarker=False,
        **parts,
    )


def shared(dtype):
    """The parts of a pipeline that all models have."""
    from diffusers import AutoencoderKL, DDIMScheduler
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    vae = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae |= {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": CHANNELS}
    text = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 12}
    return {
        "vae": randomized(lambda: AutoencoderKL(**vae), dtype),
        "text_encoder": randomized(lambda: CLIPTextModel(CLIPTextConfig(**text)), dtype),
        "tokenizer": CLIPTokenizer.from_pretrained(bundled() / "tokenizer"),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False
        ),
    }


def small(unet):
    """The network with small predictions: those of random weights grow beyond float16 in fifty steps."""
    unet.conv_out.weight.mul_(0.01)
    return unet


def lora_step(unet, dtype, compiled):
    """A step as that of diffusers' train_text_to_image_lora.py, on cached latents and contexts."""
    import torch
    from diffusers.training_utils import cast_training_params
    from peft import LoraConfig

    layers = ["to_k", "to_q", "to_v", "to_out.0"]
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=layers))
    cast_training_params(unet, dtype=torch.float32)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=1e-2)
    scaler = torch.amp.GradScaler(device(), enabled=dtype == "float16")
    predict = torch.compile(unet) if compiled else unet

    def step(latents, context):
        timestep = torch.ones(len(latents), dtype=torch.int64, device=latents.device)
        with torch.autocast(latents.device.type, getattr(torch, dtype), enabled=dtype != "float32"):
            prediction = predict(latents, timestep, context, return_dict=False)[0]
        loss = torch.nn.functional.mse_loss(prediction.float(), latents.float())
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return loss

    return step


def peak():
    import torch

    return {"peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6)} if torch.cuda.is_available() else {}


def bundled():
    """The folder of the bundled model, whose tokenizer is CLIP's."""
    package = Path(find_spec("keras_diffusion").origin).parent
    folders = (up / "weights" / "emoji" for up in (package, *package.parents))
    return next(folder for folder in folders if (folder / "model_index.json").is_file())


def pretrained(folder, dtype):
    import torch
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).to(device())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def eager(function, module, inputs):
    return function


def compiled(function, module, inputs):
    import torch

    return torch.compile(function, dynamic=False)


def openvino(function, module, inputs):
    import openvino as ov
    import torch

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return function(*inputs)

    model = ov.convert_model(Traced(), example_input=inputs, input=[tuple(x.shape) for x in inputs])
    with TemporaryDirectory() as folder:  # through a file: OpenVINO's weights beside torch's would be twice the memory
        ov.save_model(model, f"{folder}/network.xml", compress_to_fp16=False)
        del model
        for parameter in module.parameters():
            parameter.data = parameter.data[:0].clone()
        network = ov.Core().compile_model(f"{folder}/network.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *inputs: torch.from_numpy(network([x.numpy() for x in inputs])[0])


CONVERTERS = {"eager": eager, "compiled": compiled, "openvino": openvino}


def device():
    import torch

    torch.set_grad_enabled(False)
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_device(tensor, dtype):
    import torch

    return tensor.to(device(), getattr(torch, dtype))


def randomized(build, dtype):
    """A module with small random weights, without the minute that its own initialisation takes."""
    import torch

    names = ("kaiming_uniform_", "uniform_", "normal_")
    with patch.multiple(torch.nn.init, **dict.fromkeys(names, lambda tensor, *_, **__: tensor)):
        module = on_device(build().eval(), dtype)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                limit = 0.5 * (6 / sum(parameter.shape[:2])) ** 0.5  # as ours; float16 holds what comes of it
                parameter.uniform_(-limit, limit)
    return module
