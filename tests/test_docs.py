"""The pages say what is so: their Python runs on the bundled model, their links lead somewhere, nothing is left out."""

import re
from pathlib import Path

import pytest

import keras_diffusion

ROOT = Path(__file__).parents[1]
GUIDES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = ("benchmarks", "docs", "examples", "recipes", "tests", "weights")
PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def blocks(path):
    """The blocks of Python of a page, as (whether it runs here, its code)."""
    found = FENCE.findall(path.read_text(encoding="utf-8"))
    return [(info == "python", code) for info, code in found if info in ("python", "python no-run")]


def anchors(path):
    """The anchors of a page's headings, as GitHub makes them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(path):
    """The links of a page that lead nowhere; other sites are not asked."""
    targets = [link.partition("#") for link in LINK.findall(FENCE.sub("", path.read_text(encoding="utf-8")))]
    for file, _, anchor in targets:
        if "://" in file:
            continue
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield f"{file}#{anchor}" if anchor else file


@pytest.mark.parametrize("path", GUIDES, ids=lambda path: path.stem)
def test_code(path, tmp_path, monkeypatch, one_bundled_model):
    """The blocks of a page run one after the other in one namespace; those of other weights compile at least."""
    monkeypatch.chdir(tmp_path)
    names = {}
    for runs, code in blocks(path):
        compiled = compile(code, path.name, "exec")
        if runs:
            exec(compiled, names)


def test_most_pages_have_code_that_runs():
    running = {path.stem for path in GUIDES if any(runs for runs, _ in blocks(path))}
    assert running >= {"README", "drawing", "steering", "weights", "keras-cv", "backends", "extending"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(path):
    assert not list(broken(path))


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md) [b](gone.md) [c](#a-page) [d](#gone) [e](https://example.org)\n")
    assert list(broken(page)) == ["gone.md", "#gone"]


def test_the_reference_has_every_public_name():
    text = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"^::: keras_diffusion\.([\w.]+)$", text, re.MULTILINE))
    for name in keras_diffusion.__all__:
        home = keras_diffusion._HOME_OF[name]
        assert {f"{home}.{name}", home} & listed, name


def test_the_site_lists_every_page():
    listed = re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert sorted(listed) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_short():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
