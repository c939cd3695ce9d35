"""Writes a folder for ONNX Runtime, as optimum writes and loads it."""

import shutil
from functools import partial

import numpy as np

from keras_diffusion.checkpoints.layouts.diffusers_folder import write_configs
from keras_diffusion.exporting.onnx_graph import Graph
from keras_diffusion.exporting.onnx_layers import lower
from keras_diffusion.networks.graphs import LayerByLayer
from keras_diffusion.networks.network import keras_settings
from keras_diffusion.networks.timesteps import timestep_frequencies

TIMESTEP = ("float32", [])  # samplers of evenly spread noise levels have timesteps that are not whole


def write(folder, parts):
    """Writes the networks, the configuration files and the tokenizer.

    Args:
        folder: An empty folder.
        parts: `export.Parts`.
    """
    write_folder(folder, parts)
    for name, graph in graphs(parts):
        graph.save(folder / name / "model.onnx")


def write_folder(folder, parts):
    """Writes all but the networks: their folders, configuration files and the tokenizer."""
    unet = {"time_cond_proj_dim": None, **parts.configs["unet"]}
    write_configs(folder, {**parts.configs, "unet": unet}, parts.architecture, parts.tokenizer)
    shutil.copytree(folder / "vae", folder / "vae_encoder")
    (folder / "vae").rename(folder / "vae_decoder")


def graphs(parts, timestep=TIMESTEP):
    """Yields the name and the `Graph` of each network, with the names, shapes and scales of diffusers.

    Args:
        parts: `export.Parts`.
        timestep: dtype and shape of the timestep.
    """
    for name, (network, build) in GRAPHS.items():
        graph = Graph(name, parts.dtype)
        with keras_settings():
            build(graph, parts.networks[network], timestep)
        yield name, graph


def text_encoder(graph, network, _):
    """Builds the graph from tokens to the context."""
    shape = network.architecture.text_encoder
    tokens = graph.input("input_ids", "int64", ["batch_size", shape.length])
    positions = graph.weight([np.arange(shape.length)], "int32")
    context = translated(graph, network)([tokens, positions])
    graph.output("last_hidden_state", context, ["batch_size", shape.length, shape.width])


def unet(graph, network, timestep):
    """Builds the graph from latents, a timestep and the context to the prediction."""
    shape, sides = network.architecture.diffusion_model, ["height", "width"]
    sample = graph.input("sample", "float32", ["batch_size", shape.in_channels, *sides])
    timestep = graph.input("timestep", *timestep)
    context = graph.input("encoder_hidden_states", "float32", ["batch_size", "sequence_length", shape.context])
    number = graph.op("Reshape", graph.op("Cast", timestep, to=1), graph.weight([1, 1], "int64"))
    angles = graph.op("Mul", number, graph.weight(timestep_frequencies(shape.frequencies)))
    embedding = graph.op("Concat", graph.op("Cos", angles), graph.op("Sin", angles), axis=-1)
    prediction = translated(graph, network)([sample, embedding, context])
    graph.output("out_sample", prediction, ["batch_size", shape.out_channels, *sides])


def vae_decoder(graph, network, _):
    """Builds the graph from latents, of which the scaling has been undone, to images in [-1, 1]."""
    channels = network.architecture.autoencoder.latent_channels
    latents = graph.input("latent_sample", "float32", ["batch_size", channels, "height_latent", "width_latent"])
    graph.output("sample", translated(graph, network)(latents), ["batch_size", 3, "height", "width"])


def vae_encoder(graph, network, _):
    """Builds the graph from images in [-1, 1] to the mean and log-variance of latents, which are not scaled."""
    channels = 2 * network.architecture.autoencoder.latent_channels
    images = graph.input("sample", "float32", ["batch_size", 3, "height", "width"])
    moments = translated(graph, network)(images)
    graph.output("latent_parameters", moments, ["batch_size", channels, "height_latent", "width_latent"])


def translated(graph, network):
    """Returns a function of values that adds the layers of a network to a graph."""
    return LayerByLayer(network, lambda layer: partial(lower, graph, layer))


GRAPHS = {  # folder → the network, and the function that builds its graph
    "text_encoder": ("text_encoder", text_encoder),
    "unet": ("diffusion_model", unet),
    "vae_decoder": ("decoder", vae_decoder),
    "vae_encoder": ("image_encoder", vae_encoder),
}
