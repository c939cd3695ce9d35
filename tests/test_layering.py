"""The rules of the house that can be checked by reading the source."""

import ast
import importlib.util
import re
import tokenize
from pathlib import Path

import pytest

PACKAGE = "keras_diffusion"
ROOT = Path(importlib.util.find_spec(PACKAGE).submodule_search_locations[0])

# Who may import whom: a module imports from lower levels and from its own folder.
LEVELS = {
    "architectures": 0,
    "arguments": -1,  # checks that every module may use
    "errors": 0,
    "prompts.tokenizer": 0,
    "startup": -1,
    "memory": 0,
    "networks.operations": 0.5,
    "engines.torch": 2.7,
    "sampling.noise": 0,
    "images.reading": 0,
    "prompts.reading": 1,
    "sampling.schedules": 0,
    "checkpoints.layouts.keras_names": 1,
    "checkpoints.mapping.names": 0,
    "networks.network": 0.7,
    "networks.layers": 1,
    "sampling.solvers": 1,
    "engines.winograd": 1.5,
    "networks.text_encoder": 2,
    "networks.diffusion_model": 2,
    "networks.decoder": 2,
    "networks.image_encoder": 2,
    "networks.controlnet": 2.2,
    "sampling.samplers": 2,
    "engines.compile_cache": 1,
    "networks.graphs": 0.5,
    "engines.strips": 2,
    "engines.openvino": 2.5,  # the engine's
    "engines.choice": 2.6,
    "engines.tensorflow": 2.7,
    "engines.jax": 2.7,
    "engines.stages": 2.7,
    "checkpoints": 3,
    "generation.controls": 3,
    "networks.deep_cache": 2.5,
    "networks": 0,
    "prompts": 0,
    "sampling": 0,
    "images": 0,
    "generation": 0,
    "engines": 0,
    "generation.conditions": 3.5,
    "images.previews": 0.5,
    "images.safety": 0.5,
    "generation.request": 3.5,
    "engines.engine": 3,
    "sampling.scheduler_config": 3,
    "components": 3.5,
    "stable_diffusion": 4,
    "training": 5,
    PACKAGE: 6,  # the public names, __init__.py
    "images.metadata": 1,
    "cli": 8,
    "__main__": 9,
}
CORE = ("networks.text_encoder", "networks.diffusion_model", "networks.decoder", "stable_diffusion")
NETWORKS = (
    "networks.text_encoder",
    "networks.diffusion_model",
    "networks.decoder",
    "networks.image_encoder",
    "networks.controlnet",
    "networks.layers",
    "networks.network",
    "networks.operations",
)
# Solvers, paths and URLs.
UNKNOWN_TO_NETWORKS = {"huggingface_hub", "os", "pathlib", "safetensors", "sampling", "urllib"}
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
    """The key of LEVELS that speaks for a module: its own, or its folder's."""
    return module if module in LEVELS else module.partition(".")[0]


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


def test_every_module_has_a_level():
    assert {row(module) for module in MODULES} <= set(LEVELS)


@every_module
def test_imports_point_down(module):
    upwards = [
        target
        for target in imported_modules(module)
        if row(target) != row(module) and LEVELS[row(target)] >= LEVELS[row(module)]
    ]
    assert not upwards


@pytest.mark.parametrize("module", [name for name, level in LEVELS.items() if level == 0])
def test_level_0_does_without_keras(module):
    assert not [name for name in imports(module) if name.partition(".")[0] == "keras"]


@pytest.mark.parametrize("module", NETWORKS)
def test_networks_know_no_solver_path_or_url(module):
    names = {name.removeprefix(f"{PACKAGE}.").partition(".")[0] for name in imports(module)}
    assert not names & UNKNOWN_TO_NETWORKS


@pytest.mark.parametrize("module", [name for name in MODULES if not name.startswith("engines.")])
def test_only_the_engine_names_a_backend(module):
    tree = parse(module)
    literals = set(filter(is_string, ast.walk(tree))) - set(docstrings(tree))
    literals = sorted(node.value for node in literals)
    assert not [text for text in [*imports(module), *literals] if BACKEND.search(text)]


@every_module
def test_nothing_prints_at_import(module):
    assert not [
        node.lineno
        for node in at_import(parse(module))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]


def test_the_four_core_modules_are_small():
    assert sum(map(code_lines, CORE)) < 500
