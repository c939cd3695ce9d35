"""Exports the bundled model in every format, and draws with each: how large, how fast, how far from the model itself.

    python benchmarks/exports.py            # needs the extra "export", onnxruntime and ai-edge-litert

Every format is run in a process of its own, which draws an image of 25 steps several times. On a busy machine look at
the processor time.
"""

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PROMPT, STEPS, GUIDANCE, SEED = "a slice of pizza", 25, 2.0, 3


def live(folder):
    from keras_diffusion import StableDiffusion

    model = StableDiffusion.from_preset("emoji")
    return lambda **_: model.text_to_image(PROMPT, None, 1, STEPS, GUIDANCE, SEED, verbose=0)


def saved_model(folder):
    import tensorflow as tf

    loaded = tf.saved_model.load(folder)
    function = loaded.signatures["serving_default"]
    return lambda **inputs: (loaded, function(**{k: tf.constant(x) for k, x in inputs.items()})["images"].numpy())[1]


def onnx(folder):
    from onnxruntime import InferenceSession

    def load(name):
        session = InferenceSession(folder / name / "model.onnx")
        return lambda **inputs: session.run(None, inputs)[0]

    return channels_first(load)


def openvino(folder):
    from openvino import Core

    def load(name):
        network = Core().compile_model(folder / name / "openvino_model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda **inputs: network(inputs)[0]

    return channels_first(load, timestep=lambda t: np.array([round(t)]))


def litert(folder):
    from ai_edge_litert.interpreter import Interpreter

    names = "text_encoder", "diffusion_model", "decoder"
    interpreters = [Interpreter(str(folder / f"{name}.tflite"), num_threads=os.cpu_count()) for name in names]
    encode, predict, decode = (interpreter.get_signature_runner() for interpreter in interpreters)

    def halves(latents, t, contexts):
        return [predict(latents=latents, timestep=t[None], context=context)["prediction"] for context in contexts]

    def draw(tokens, negative_tokens, **inputs):
        contexts = [encode(tokens=x)["context"] for x in (negative_tokens, tokens)]
        latents = run_table(lambda latents, t: halves(latents, t, contexts), **inputs)
        return (interpreters, decode(latents=latents)["images"])[1]

    return draw


def channels_first(load, timestep=np.array):
    """Draws with networks of diffusers' names and layout, which `load` gives."""
    encode, predict, decode = (load(name) for name in ("text_encoder", "unet", "vae_decoder"))

    def draw(tokens, negative_tokens, **inputs):
        context = encode(input_ids=np.concatenate([negative_tokens, tokens]).astype("int64"))

        def halves(latents, t):
            sample = np.repeat(latents.transpose(0, 3, 1, 2), 2, axis=0)
            prediction = predict(sample=sample, timestep=timestep(t), encoder_hidden_states=context)
            return np.split(prediction.transpose(0, 2, 3, 1), 2)

        images = decode(latent_sample=run_table(halves, **inputs).transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
        return ((images + 1) * 127.5).clip(0, 255).round().astype("uint8")

    return draw


def run_table(halves, latents, table, noise, guidance):
    """Runs a sampler that adds no noise."""
    history = np.zeros((5, *latents.shape), "float32")
    for t, p, q, a, _, *b in table:
        negative, positive = halves(latents, t)
        prediction = negative + guidance * (positive - negative)
        history = np.concatenate([(p * latents + q * prediction)[None], history[:-1]])
        latents = a * latents + np.tensordot(np.stack(b), history, 1)
    return latents


def measure(format, folder, rounds):
    """Prints the seconds and the processor time of an image, the least of some rounds, and keeps the image."""
    draw, inputs = globals()[format](folder), dict(np.load(folder.parent / "inputs.npz"))
    draw(**inputs)
    times = []
    for _ in range(rounds):
        begun = time.perf_counter(), time.process_time()
        image = draw(**inputs)
        times.append([time.perf_counter() - begun[0], time.process_time() - begun[1]])
    np.save(folder.parent / f"{format}.npy", image)
    print(*np.min(times, axis=0))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]), options.rounds)
        return
    keras_diffusion = importlib.import_module("keras_diffusion")
    formats = importlib.import_module("keras_diffusion.exporting.formats").FORMATS
    with tempfile.TemporaryDirectory() as temporary:
        folders = {name: Path(temporary) / name for name in ("live", *formats)}
        model = keras_diffusion.StableDiffusion.from_preset("emoji")
        model.save_to_preset(folders["live"])
        for name in formats:
            model.export(folders[name], name)
        call = {"num_steps": STEPS, "unconditional_guidance_scale": GUIDANCE, "seed": SEED}
        np.savez(Path(temporary) / "inputs.npz", **keras_diffusion.export_inputs(folders["litert"], PROMPT, **call))
        print("| format | MB | seconds | processor | levels off |\n|---|---|---|---|---|")
        for name, folder in folders.items():
            command = [sys.executable, __file__, "--rounds", str(options.rounds), "--measure", name, folder]
            child = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds, cpu = map(float, child.stdout.split()[-2:])
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
            images = [np.load(Path(temporary) / f"{each}.npy").astype(int) for each in ("live", name)]
            print(f"| {name} | {size:.0f} | {seconds:.2f} | {cpu:.2f} | {np.abs(images[0] - images[1]).max()} |")


if __name__ == "__main__":
    main()
