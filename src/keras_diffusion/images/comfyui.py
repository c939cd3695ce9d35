"""Reads the graph of nodes that ComfyUI writes into images, where its nodes say how an image was made.

There are two forms. "prompt" is {id: {"class_type": …, "inputs": {name: value or [id, output]}}}. "workflow" is what
the editor saves; its values have no names. Source: `nodes.py` and `comfy_extras/nodes_custom_sampler.py` of ComfyUI.
"""

import json

# Nodes that are followed, or change nothing, and the names of their values in the editor's order.
NODES = {
    "KSampler": ("seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": (
        *("add_noise", "noise_seed", "control_after_generate", "steps", "cfg", "sampler_name", "scheduler"),
        *("start_at_step", "end_at_step", "return_with_leftover_noise"),
    ),
    "SamplerCustom": ("add_noise", "noise_seed", "control_after_generate", "cfg"),
    "SamplerCustomAdvanced": (),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed", "control_after_generate"),
    "CFGGuider": ("cfg",),
    "BasicGuider": (),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "VAELoader": ("vae_name",),
    "VAEDecode": (),
    "SaveImage": ("filename_prefix",),
    "PreviewImage": (),
    "PrimitiveNode": ("value",),
    "Reroute": (),
    "Note": ("text",),
    "MarkdownNote": ("text",),
}
SAMPLERS = tuple(name for name in NODES if "Sampler" in name and name != "KSamplerSelect")
BEHIND = ("sigmas", "sampler", "noise", "guider")  # inputs of samplers whose nodes hold the values
TEXTS = ("text", "text_g", "prompt", "string", "value")
# A sampler's value → ours.
VALUES = {"seed": "Seed", "noise_seed": "Seed", "steps": "Steps", "cfg": "CFG scale", "sampler_name": "Sampler"}
WHOLE = {  # value of a sampler → what it is where the whole image is drawn from noise
    "denoise": (1, 1.0),
    "add_noise": ("enable", True),
    "start_at_step": (0,),
    "return_with_leftover_noise": ("disable", False),
}


def settings(texts):
    """Reads the graph in an image.

    Args:
        texts: A dict of the texts in the image, by their names.

    Returns:
        A dict of str, as `metadata.from_text`, in which nodes that are not followed stand under their class; None if
        there is no graph.
    """
    for name, nodes_of in (("prompt", _from_prompt), ("workflow", _from_workflow)):
        try:
            nodes = nodes_of(json.loads(texts.get(name, "")))
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
            continue
        if nodes:
            return _Graph(nodes).settings()
    return None


def _from_prompt(given):
    return {
        str(key): (str(node["class_type"]), dict(node["inputs"]))
        for key, node in given.items()
        if isinstance(node, dict) and "class_type" in node
    }


def _from_workflow(given):
    """The nodes that the editor saves, as those of a prompt; values of unknown nodes have no names."""
    links = {link[0]: [str(link[1]), link[2]] for link in given["links"]}
    nodes = {}
    for node in given["nodes"]:
        values = node.get("widgets_values") or ()
        inputs = dict(zip(NODES.get(node["type"], ()), values, strict=False)) if isinstance(values, list) else {}
        linked = {x["name"]: links[x["link"]] for x in node.get("inputs") or () if x.get("link") in links}
        if node.get("mode", 0) == 0:  # others are switched off
            nodes[str(node["id"])] = str(node["type"]), inputs | linked
    return nodes


class _Graph:
    """The nodes of an image: a dict from ids to pairs (class, inputs).

    Every search takes time in proportion to the nodes and their inputs, however they are linked.
    """

    def __init__(self, nodes):
        self.nodes = nodes
        self._values = {}  # id of a node that a value was taken from → the value

    def source(self, value):
        """The id of the node that a value is taken from, or None if it is the value itself."""
        linked = isinstance(value, list) and len(value) == 2 and str(value[0]) in self.nodes
        return str(value[0]) if linked else None

    def input(self, key, *names):
        """The first of these inputs of a node that it has, or None."""
        inputs = self.nodes[key][1] if key else {}
        return next((inputs[name] for name in names if name in inputs), None)

    def value(self, value):
        """A value that may be taken from another node, which holds one."""
        passed = {}
        while (key := self.source(value)) and key not in passed:
            passed[key] = None
            inputs = self.nodes[key][1].values()
            held = (x for x in inputs if isinstance(x, (str, int, float)) or self.source(x))
            value = self._values[key] if key in self._values else next(held, None)
        value = value if isinstance(value, (str, int, float)) else None
        self._values |= dict.fromkeys(passed, value)
        return value

    def chain(self, key, name):
        """The ids of nodes from one on, each the input `name` of the one before it."""
        found = {}
        while key and key not in found:
            found[key] = None
            key = self.source(self.input(key, name))
        return [*found]

    def text(self, value):
        """The text behind a conditioning."""
        seen = set()
        while (key := self.source(value)) and key not in seen:
            seen.add(key)
            value = self.input(key, *TEXTS)
            if value is None:  # a node that changes one, or a pair of them
                inputs = self.nodes[key][1]
                value = inputs.get("conditioning", next(filter(self.source, inputs.values()), None))
        return value if isinstance(value, str) else ""

    def conditioning(self, sampler, name):
        """A conditioning of a sampler: through what takes and gives pairs of them, the one of that name."""
        value, seen = self.input(sampler, name), set()
        while (key := self.source(value)) and key not in seen and name in self.nodes[key][1]:
            seen.add(key)
            value = self.input(key, name)
        return value

    def first_sampler(self):
        """The sampler that starts from noise: the first behind none of whose latents is another one."""
        samplers = [key for key, (kind, _) in self.nodes.items() if kind in SAMPLERS]
        behind = self.descendants(samplers)
        return next((x for x in samplers if self.source(self.input(x, "latent_image")) not in behind), None)

    def descendants(self, keys):
        """These nodes and all that take anything from them."""
        takers = {}
        for key, (_, inputs) in self.nodes.items():
            for source in filter(None, map(self.source, inputs.values())):
                takers.setdefault(source, []).append(key)
        found, waiting = set(), [*keys]
        while waiting:
            if (key := waiting.pop()) not in found:
                found.add(key)
                waiting += takers.get(key, ())
        return found

    def settings(self):
        """All that can be found, as `metadata` names it."""
        sampler = self.first_sampler()
        found = {"Made by": "ComfyUI", "Prompt": "", "Negative prompt": ""}
        if sampler:
            found |= self._of_sampler(sampler)
        for key, (kind, inputs) in self.nodes.items():
            if kind not in NODES or (kind in SAMPLERS and key != sampler):
                found[f"ComfyUI's {kind}"] = json.dumps(inputs, ensure_ascii=False)[:300]
        return {name: str(value) for name, value in found.items()}

    def _of_sampler(self, sampler):
        behind = [self.source(self.input(sampler, name)) for name in BEHIND]
        values = {}
        for key in filter(None, [*behind, sampler]):
            values |= {name: self.value(value) for name, value in self.nodes[key][1].items()}
        guider = self.source(self.input(sampler, "guider")) or sampler
        found = {ours: values[name] for name, ours in VALUES.items() if values.get(name) is not None}
        if (scheduler := values.get("scheduler")) is not None:
            found["Schedule type"] = scheduler
        positive = self.conditioning(guider, "positive") or self.input(guider, "conditioning")
        found["Prompt"] = self.text(positive)
        found["Negative prompt"] = self.text(self.conditioning(guider, "negative"))
        found |= {
            f"ComfyUI's {name}": values[name]
            for name, usual in WHOLE.items()
            if values.get(name, usual[0]) not in usual
        }
        latents = self.source(self.input(sampler, "latent_image"))
        width, height = (self.value(self.input(latents, name)) for name in ("width", "height"))
        found |= {"Size": f"{width}x{height}"} if width and height else {}
        return found | self._of_model(guider, positive)

    def _of_model(self, guider, positive):
        """Finds the files of the networks, the LoRAs as tags of a prompt, and the clip skip."""
        found, tags = {}, []
        models = self.chain(self.source(self.input(guider, "model")), "model")
        for key in models:
            _, inputs = self.nodes[key]
            if "lora_name" in inputs:
                name = str(inputs["lora_name"]).replace("\\", "/").rpartition("/")[2].rpartition(".")[0]
                unet = self.value(inputs.get("strength_model", 1))
                tags.insert(0, f"<lora:{name}:{self.value(inputs.get('strength_clip', 0))}:{unet}>")
            if "ckpt_name" in inputs:
                found["Model"] = self.value(inputs["ckpt_name"])
        encoder = self.source(positive)
        for key in self.chain(self.source(self.input(encoder, "clip")), "clip"):
            if isinstance(layer := self.value(self.input(key, "stop_at_clip_layer")), int):
                found.setdefault("Clip skip", -layer)
        for _, inputs in self.nodes.values():
            if "vae_name" in inputs:
                found["VAE"] = self.value(inputs["vae_name"])
        return found | ({"LoRAs": "".join(tags)} if tags else {})
