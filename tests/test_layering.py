"""The rules of the house that can be checked by reading the source."""

import ast
import importlib.util
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

PACKAGE = "keras_diffusion"
ROOT = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])
TESTS = Path(__file__).parent

# Who may import whom: a module imports from lower levels and from its own folder.
LEVELS = {
    "architectures": 0,
    "arguments": 0,
    "errors": 0,
    "startup": 0,
    "system": 0,
    "terminal": 0,
    "networks": 1,
    "prompts": 1,
    "sampling": 1,
    "checkpoints": 2,
    "engines": 2,
    "images": 2,
    "components": 3,
    "exporting": 3,
    "generation": 3,
    "learning": 3,
    "stable_diffusion": 4,
    "models": 5,
    "training": 5,
    PACKAGE: 5,  # the public names, __init__.py
    "serving": 6,
    "cli": 7,
    "__main__": 8,
}
# `load_weights` of a network calls the reader of files, so that it does the same however the network was imported.
# `train_lora` of a model and its like call what trains models.
EXCEPTIONS = {("networks.network", "checkpoints.layouts.keras_files"), ("learning", "training.runs")}
# The same among the folders of checkpoints/.
CHECKPOINTS = {"formats": 0, "mapping": 1, "layouts": 2, "adapters": 3, "download": 3, "presets": 4}
# What the command line needs before Keras, and what does without it.
KERAS_FREE = (
    "architectures",
    "arguments",
    "errors",
    "startup",
    "system",
    "terminal",
    "prompts",
    "sampling",
    "images",
    "checkpoints.adapters.lora_folder",
    "checkpoints.formats",
    "checkpoints.download",
    "checkpoints.presets",
    "engines.names",
    "exporting.formats",
    PACKAGE,
    "serving",
    "cli",
    "__main__",
)
WITHOUT_KERAS = """
import importlib, sys
sys.modules["keras"] = None  # importing it fails
failures = []
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError:
        failures.append(name)
sys.exit(", ".join(failures) or None)
"""
PUBLIC = (PACKAGE, "models", "models.stable_diffusion", "training")  # whose __init__.py holds what users import
CORE = ("networks.text_encoder", "networks.diffusion_model", "networks.decoder", "stable_diffusion")
# Solvers, paths and URLs.
UNKNOWN_TO_NETWORKS = {"huggingface_hub", "os", "pathlib", "safetensors", "sampling", "urllib"}
# Modules without a test file of their name, and the one that tests them.
KERAS_CV = ("clip_tokenizer", "constants", "decoder", "diffusion_model", "image_encoder", "networks")
KERAS_CV += ("noise_scheduler", "stable_diffusion", "text_encoder")
TESTED_BY = {
    PACKAGE: "test_import.py",
    "__main__": "cli/test_main.py",
    "arguments": "generation/test_request.py",
    "components.components": "test_unload.py",
    "components.adapters": "checkpoints/adapters/test_lora_fusion.py",
    "errors": "test_stable_diffusion.py",
    "system.limits": "checkpoints/formats/test_limits.py",
    "system.processes": "generation/test_request.py",
    "terminal": "cli/test_main.py",
    **{
        f"cli.{name}": "cli/test_main.py"
        for name in ("convert", "export", "generate", "generate_arguments", "info", "model", "train")
    },
    "exporting.formats": "exporting/test_export.py",
    "exporting.onnx_graph": "exporting/test_onnx.py",
    "exporting.onnx_layers": "exporting/test_onnx.py",
    "exporting.inputs": "exporting/test_saved_model.py",
    "engines.plan": "engines/test_engine.py",
    "generation.noise": "generation/test_request.py",
    "networks.timesteps": "networks/test_diffusion_model.py",
    "networks.tiny_autoencoder": "checkpoints/layouts/test_tiny_vae_files.py",
    "networks.upscalers": "checkpoints/layouts/test_upscaler_files.py",
    "checkpoints.mapping.paths": "checkpoints/layouts/test_upscaler_files.py",
    "networks.classes": "networks/test_layers.py",
    "networks.graphs": "engines/test_strips.py",
    "images.png": "checkpoints/formats/test_limits.py",
    "images.resizing": "generation/test_hires.py",
    "images.comfyui": "images/test_other_tools.py",
    "networks.vision_encoder": "checkpoints/adapters/test_ip_adapter_file.py",
    "networks.ip_adapter": "generation/test_image_prompts.py",
    "checkpoints.mapping.image_prompt_names": "checkpoints/adapters/test_ip_adapter_file.py",
    "checkpoints.layouts.vision_files": "checkpoints/adapters/test_ip_adapter_file.py",
    "generation.guidance": "test_pipeline.py",
    "generation.refiner": "test_sdxl.py",
    "generation.results": "generation/test_request.py",
    "generation.texts": "test_sdxl.py",
    "checkpoints.mapping.layer_tables": "checkpoints/mapping/test_names.py",
    "checkpoints.adapters.lora_writer": "training/test_lora.py",
    "serving.a1111_extras": "serving/test_a1111_api.py",
    "serving.a1111_fields": "serving/test_a1111_api.py",
    "serving.a1111_lists": "serving/test_a1111_api.py",
    "serving.adapters": "serving/test_models.py",
    **{f"serving.{name}": "serving/test_jobs_api.py" for name in ("app", "calls", "problems", "service")},
    "images.job_settings": "serving/test_jobs_api.py",
    **{f"serving.{name}": "serving/test_jobs_api.py" for name in ("store", "uploads", "worker")},
    "learning": "training/test_runs.py",
    "training.class_images": "training/test_runs.py",
    "training.controlnet": "training/test_runs.py",
    "training.encoding": "training/test_dataset.py",
    "training.learners": "training/test_trainer.py",
    "engines.openvino_layers": "engines/test_openvino.py",
    "engines.in_turn": "engines/test_jax.py",
    "networks.t2i_adapter": "checkpoints/layouts/test_t2i_adapter_files.py",
    "engines.names": "cli/test_main.py",
    "engines.stages": "engines/test_engine.py",
    "engines.tensorflow": "engines/test_engine.py",
    "checkpoints.adapters.layer_names": "checkpoints/adapters/test_lora_file.py",
    "checkpoints.layouts.tokenizer_files": "checkpoints/adapters/test_textual_inversion.py",
    **{f"models.stable_diffusion.{name}": "models/test_stable_diffusion.py" for name in KERAS_CV},
    "models": "models/test_stable_diffusion.py",
    "models.stable_diffusion": "models/test_stable_diffusion.py",
    "checkpoints.adapters.peft_config": "checkpoints/adapters/test_lora_file.py",
    "sampling.recurrence": "sampling/test_solvers.py",
    "sampling.registry": "sampling/test_samplers.py",
    "sampling.scheduler_options": "sampling/test_scheduler_config.py",
    "sampling.dpm_solvers": "sampling/test_solvers.py",
    "sampling.two_stage": "sampling/test_solvers.py",
    "checkpoints.formats.hdf5_file": "checkpoints/layouts/test_keras_files.py",
    "checkpoints.formats.gguf_blocks": "checkpoints/formats/test_gguf_file.py",
    "checkpoints.formats.hdf5_objects": "checkpoints/layouts/test_keras_files.py",
    "checkpoints.formats.pickle_calls": "checkpoints/formats/test_pickle_file.py",
    "checkpoints.formats.pickle_interpreter": "checkpoints/formats/test_pickle_file.py",
    "checkpoints.formats.tensor_index": "checkpoints/layouts/test_single_file.py",
    "checkpoints.formats.tensors": "checkpoints/mapping/test_loading.py",
    "checkpoints.layouts.diffusers_levels": "checkpoints/layouts/test_diffusers_configs.py",
    "checkpoints.layouts.diffusers_checks": "checkpoints/layouts/test_diffusers_configs.py",
    "checkpoints.layouts.diffusers_options": "checkpoints/layouts/test_diffusers_configs.py",
    "checkpoints.layouts.files": "checkpoints/layouts/test_diffusers_folder.py",
    "checkpoints.layouts.ldm": "checkpoints/layouts/test_single_file.py",
    "checkpoints.layouts.saving": "checkpoints/layouts/test_diffusers_folder.py",
    "checkpoints.download.https": "checkpoints/download/test_fetch.py",
    "checkpoints.download.sources": "checkpoints/test_presets.py",
}
# Tests beside those of single modules.
ACROSS = {
    "checkpoints/test_faults.py",
    "training/test_against_diffusers.py",
    "training/test_quality.py",
    "training/test_sdxl_against_diffusers.py",
    "checkpoints/test_structured_fuzz.py",
    "checkpoints/test_diffusers.py",
    "serving/test_page.py",
    "checkpoints/download/test_hub_client.py",
    "checkpoints/formats/test_limits.py",
    "checkpoints/formats/test_fuzz.py",
}
# Names with an underscore that are public (of named tuples), or of a backend and used by its engine.
ALLOWED = {"_replace", "_fields", "_asdict", "_linear_pointwise"}
BACKEND = re.compile(r"\b(tensorflow|jax|torch|openvino)\b")
LAYOUT_TOKENS = {
    tokenize.COMMENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
    tokenize.INDENT,
    tokenize.NEWLINE,
    tokenize.NL,
}


def module_name(path):
    """Dotted name below the package; the package's own __init__.py bears the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or PACKAGE


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}
every_module = pytest.mark.parametrize("module", MODULES)


def parse(module):
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def row(module):
    """The key of LEVELS that speaks for a module: that of the file or folder at the top."""
    return module.partition(".")[0]


def inner_row(module):
    """The key of CHECKPOINTS that speaks for a module of that folder."""
    return module.split(".")[1]


def imports(module):
    """Absolute dotted names of all that a module imports, at its top or inside a function."""
    package = [PACKAGE, *module.split(".")] if module != PACKAGE else [PACKAGE]
    if MODULES[module].stem != "__init__":
        package.pop()
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(base + ([node.module] if node.module else []))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def imported_modules(module):
    """The package's own modules among them, as keys of MODULES."""
    for name in imports(module):
        if name == PACKAGE or name.startswith(f"{PACKAGE}."):
            name = name.removeprefix(PACKAGE).removeprefix(".")
            while name and name not in MODULES:
                name = name.rpartition(".")[0]
            yield name or PACKAGE


def is_string(node):
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def docstrings(tree):
    """The string constants that stand alone as statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and is_string(node.value):
            yield node.value


def code_lines(module):
    """Number of lines that hold code: not blank, not comment, not docstring."""
    with tokenize.open(MODULES[module]) as file:
        tokens = [t for t in tokenize.generate_tokens(file.readline) if t.type not in LAYOUT_TOKENS]
    lines = {line for t in tokens for line in range(t.start[0], t.end[0] + 1)}
    for docstring in docstrings(parse(module)):
        lines -= set(range(docstring.lineno, docstring.end_lineno + 1))
    return len(lines)


def at_import(node):
    """The nodes that run when a module is imported: all but the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_import(child)


def within(folders):
    """The modules that are, or are in, one of these folders."""
    return [module for module in MODULES if any(f"{module}.".startswith(f"{folder}.") for folder in folders)]


def test_every_module_has_a_level():
    assert {row(module) for module in MODULES} == set(LEVELS)


@every_module
def test_imports_point_down(module):
    upwards = [
        target
        for target in imported_modules(module)
        if row(target) != row(module) and LEVELS[row(target)] >= LEVELS[row(module)]
    ]
    assert {(module, target) for target in upwards} <= EXCEPTIONS


@pytest.mark.parametrize("module", [name for name in within(["checkpoints"]) if "." in name])
def test_imports_point_down_in_checkpoints(module):
    upwards = [
        target
        for target in imported_modules(module)
        if row(target) == "checkpoints"
        and inner_row(target) != inner_row(module)
        and CHECKPOINTS[inner_row(target)] >= CHECKPOINTS[inner_row(module)]
    ]
    assert not upwards


def test_the_top_shows_folders_and_few_files():
    assert sum("." not in module and path.parent == ROOT for module, path in MODULES.items()) <= 10


def test_folders_are_empty_by_themselves():
    """Importing one module of a folder imports no other."""
    folders = [module for module, path in MODULES.items() if path.stem == "__init__" and module not in PUBLIC]
    assert folders
    assert not [module for module in folders if parse(module).body]


def test_what_is_free_of_keras():
    names = [name if name == PACKAGE else f"{PACKAGE}.{name}" for name in within(KERAS_FREE)]
    child = subprocess.run([sys.executable, "-c", WITHOUT_KERAS, *names], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


@pytest.mark.parametrize("module", within(["networks"]))
def test_networks_know_no_solver_path_or_url(module):
    names = {name.removeprefix(f"{PACKAGE}.").partition(".")[0] for name in imports(module)}
    assert not names & UNKNOWN_TO_NETWORKS


@pytest.mark.parametrize("module", [name for name in MODULES if row(name) not in ("engines", "exporting")])
def test_only_engines_and_exports_name_a_backend(module):
    tree = parse(module)
    literals = set(filter(is_string, ast.walk(tree))) - set(docstrings(tree))
    literals = sorted(node.value for node in literals)
    assert not [text for text in [*imports(module), *literals] if BACKEND.search(text)]


def test_only_one_file_knows_private_names_of_others():
    """Names with an underscore are those of this package; Keras' own are in `networks.keras_internals`."""
    used, own = {}, set()
    for module in MODULES:
        for node in ast.walk(parse(module)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                own.add(node.attr)
            elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.endswith("__"):
                used.setdefault(node.attr, set()).add(module)
    assert {name: modules for name, modules in used.items() if name not in own | ALLOWED} == {}


def own_test(module):
    """Where the tests of a module are, unless TESTED_BY says otherwise."""
    *folders, name = module.split(".")
    return "/".join([*folders, f"test_{name}.py"])


@pytest.mark.parametrize("module", [name for name, path in MODULES.items() if path.stem != "__init__"])
def test_tests_mirror_the_source(module):
    assert (TESTS / TESTED_BY.get(module, own_test(module))).is_file()
    assert module not in TESTED_BY or not (TESTS / own_test(module)).exists()


def test_tests_in_folders_are_those_of_a_module():
    wings = {row(module) for module in MODULES}
    found = {path.relative_to(TESTS).as_posix() for path in TESTS.rglob("*/test_*.py")}
    found = {path for path in found if path.partition("/")[0] in wings}
    assert found - {own_test(module) for module in MODULES} == ACROSS


@every_module
def test_nothing_prints_at_import(module):
    assert not [
        node.lineno
        for node in at_import(parse(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def test_the_four_core_modules_are_small():
    assert sum(map(code_lines, CORE)) < 500
