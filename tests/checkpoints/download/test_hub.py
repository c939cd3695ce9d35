"""Fetching from huggingface.co with the package huggingface_hub: against a repository on this machine."""

import errno
import hashlib
import inspect
import json
import sys
from types import SimpleNamespace

import pytest

from keras_diffusion.checkpoints import presets
from keras_diffusion.checkpoints.download import fetch, hub, sources
from keras_diffusion.errors import DownloadError, IntegrityError, NoSpaceError, OfflineError, UnsafeCheckpointError

huggingface_hub = pytest.importorskip("huggingface_hub")

CONFIGS = {
    *("model_index.json", "text_encoder/config.json", "unet/config.json", "vae/config.json"),
    *("scheduler/scheduler_config.json", "tokenizer/tokenizer_config.json"),
}
WEIGHTS = {
    "text_encoder/model.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
}
HALF = {name.replace(".safetensors", ".fp16.safetensors") for name in WEIGHTS}
PICKLES = {
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.bin",
    "vae/diffusion_pytorch_model.bin",
}
OTHERS = {
    *("README.md", "setup.py", "unet/code.py", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "tokenizer/vocab.json"),
    *("safety_checker/model.safetensors", "unet/diffusion_flax_model.msgpack", "text_encoder/tf_model.h5"),
    *("unet/diffusion_pytorch_model.non_ema.safetensors", "../model.h5", "..\\model.h5", "a/b.h5"),
}


class Answer(Exception):
    """What a server answered, as huggingface_hub raises it."""

    def __init__(self, status):
        super().__init__("Bearer hf_secret")
        self.response = SimpleNamespace(status_code=status)


class Repository:
    """A repository and its cached copy; `failure` is raised instead."""

    def __init__(self, folder):
        self.folder, self.contents, self.failure, self.brought, self.asked = folder, {}, None, set(), []

    def model_info(self, repository, revision, timeout):
        self.asked.append((repository, revision))
        if self.failure:
            raise self.failure
        siblings = [SimpleNamespace(rfilename=name) for name in self.contents]
        return SimpleNamespace(sha="c" * 40, siblings=siblings)

    def snapshot_download(self, repository, revision, allow_patterns, local_files_only):
        if local_files_only:
            if not self.brought:
                raise huggingface_hub.errors.LocalEntryNotFoundError("nothing")
            return str(self.folder)
        assert repository == "owner/name"
        assert revision in (self.asked[-1][1], "c" * 40)
        for name in allow_patterns:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.contents[name])
            self.brought.add(name)
        return str(self.folder)

    def hf_hub_download(self, repository, file, revision, local_dir):
        if self.failure:
            raise self.failure
        path = self.folder.__class__(local_dir) / file
        path.write_bytes(self.contents[file])
        return str(path)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    repository = Repository(tmp_path / "snapshot")
    for variable in fetch.OFFLINE:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: repository)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", repository.snapshot_download)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", repository.hf_hub_download)
    return repository


@pytest.mark.parametrize(
    ("listed", "wanted"),
    [
        (CONFIGS | WEIGHTS | HALF | PICKLES | OTHERS, CONFIGS | WEIGHTS),
        (CONFIGS | HALF | PICKLES | OTHERS, CONFIGS | HALF),
        (CONFIGS | PICKLES | OTHERS, CONFIGS | PICKLES),
        (OTHERS | {"kcv_encoder.h5", "kcv_decoder.h5"}, {"kcv_encoder.h5", "kcv_decoder.h5"}),
    ],
)
def test_brings_what_is_needed(repository, listed, wanted):
    repository.contents = dict.fromkeys(listed, b"{}")
    assert fetch.fetch("hf://owner/name@v1") == repository.folder
    assert repository.brought == wanted
    assert repository.asked == [("owner/name", "v1")]


@pytest.mark.parametrize("variant", ["", ".fp16"])
def test_brings_the_shards_that_an_index_lists(repository, variant):
    index = f"unet/diffusion_pytorch_model.safetensors.index{variant}.json"
    shards = {f"unet/diffusion_pytorch_model{variant}-0000{i}-of-00002.safetensors" for i in (1, 2)}
    content = json.dumps({"weight_map": {shard: shard.partition("/")[2] for shard in shards}}).encode()
    repository.contents = dict.fromkeys(CONFIGS | shards | {"unet/other-00001-of-00002.safetensors"}, b"{}")
    repository.contents[index] = content
    fetch.fetch("hf://owner/name")
    assert repository.brought == CONFIGS | shards | {index}


@pytest.mark.parametrize("name", ["../x.safetensors", "..\\x.safetensors", "/etc/x.bin", "C:x.bin", "x.py", "*.bin"])
def test_refuses_an_index_that_lists_other_files(repository, name):
    index = "unet/diffusion_pytorch_model.safetensors.index.json"
    repository.contents = dict.fromkeys(CONFIGS, b"{}") | {index: json.dumps({"weight_map": {"a": name}}).encode()}
    with pytest.raises(UnsafeCheckpointError, match="names of files beside it"):
        fetch.fetch("hf://owner/name")
    assert repository.brought == CONFIGS | {index}


def test_refuses_a_repository_without_a_model(repository):
    repository.contents = dict.fromkeys(OTHERS, b"{}")
    with pytest.raises(DownloadError, match="no Stable Diffusion model"):
        fetch.fetch("hf://owner/name")


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (Answer(401), DownloadError, r"accept its licence on https://huggingface\.co/owner/name and set HF_TOKEN"),
        (Answer(403), DownloadError, "accept its licence on"),
        (Answer(404), DownloadError, "not there"),
        (Answer(429), DownloadError, "come back later"),
        (Answer(500), DownloadError, "answers 500"),
        (ConnectionError("Bearer hf_secret"), OfflineError, "not at hand"),
    ],
)
def test_explains_failures(repository, failure, error, message):
    repository.failure = failure
    with pytest.raises(error, match=message) as caught:
        fetch.fetch("hf://owner/name")
    assert "hf_secret" not in str(caught.value)


def test_no_space(repository, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "full")

    repository.contents = dict.fromkeys(CONFIGS, b"{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(NoSpaceError, match="HF_HOME"):
        fetch.fetch("hf://owner/name")


@pytest.mark.parametrize("variable", fetch.OFFLINE)
def test_offline(repository, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(OfflineError, match=r"https://huggingface\.co/owner/name"):
        fetch.fetch("hf://owner/name")
    repository.brought = {"model_index.json"}
    assert fetch.fetch("hf://owner/name") == repository.folder
    assert not repository.asked


def test_what_is_at_hand_serves_where_there_is_no_connection(repository, caplog):
    repository.brought, repository.failure = {"model_index.json"}, ConnectionError()
    assert fetch.fetch("hf://owner/name") == repository.folder
    assert "cannot be reached" in caplog.text


def test_only_who_asks_downloads(repository):
    repository.contents = dict.fromkeys(CONFIGS | WEIGHTS, b"{}")
    with pytest.raises(OfflineError):
        presets.find("hf://owner/name")
    assert presets.find("hf://owner/name", may_download=True) == repository.folder
    assert presets.find("hf://owner/name") == repository.folder


def test_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"keras-diffusion\[hub\]"):
        fetch.fetch("hf://owner/name")


@pytest.mark.parametrize(
    "name",
    [
        *("hf://", "hf://name", "hf://owner/", "hf:///name", "hf://owner/name/more", "hf://owner/name@"),
        *("hf://../name", "hf://owner/..", "hf://owner/na..me", "hf://owner\\name/x", "hf://owner/name@../../x"),
        *("hf://owner/name@a\\b", "hf://C:/name", "hf://owner/name@/etc", "hf://owner/name@a//b", "hf://owner/name@-x"),
        *("hf://owner/name\n", "hf://owner/n\0", "hf://owner/ñame", "hf://owner/name@a/../b", "hf://owner/name@a%2f.."),
        *("hf://owner--a/name", "hf://owner/*", "hf://user:pw@host/name", "hf://owner/name?x", "hf://" + "a" * 100_000),
    ],
)
def test_refuses_other_names(name):
    with pytest.raises(ValueError, match="Received: ") as caught:
        fetch.fetch(name)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("revision", ["main", "v1.0", "c" * 40, "refs/pr/7", "feature_x"])
def test_understands_revisions(revision):
    uri = f"hf://owner/na.me-1@{revision}"
    assert sources.source(uri)[:3] == (uri, "owner/na.me-1", revision)


def test_brings_and_verifies_built_in_files(repository, monkeypatch, tmp_path):
    content = b"weights"
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    model = {"repository": "owner/name", "revision": "1234", "licence": "A Licence", "files": {"a.h5": entry}}
    monkeypatch.setenv("KERAS_DIFFUSION_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sources.MANIFEST, "small", model)
    repository.contents = {"a.h5": b"Weights"}
    with pytest.raises(IntegrityError, match="sha256"):
        fetch.fetch("small")
    repository.failure = Answer(403)
    with pytest.raises(DownloadError, match="accept its licence"):
        fetch.fetch("small")
    repository.failure, repository.contents = None, {"a.h5": content}
    path = fetch.fetch("small")
    assert path.read_bytes() == content
    assert [file.name for file in (tmp_path / "cache").rglob("*") if file.is_file()] == ["a.h5"]
    assert not list(path.parent.glob(".*"))


def test_the_real_functions_take_these_arguments():
    bind = {
        huggingface_hub.snapshot_download: {"revision": "", "allow_patterns": [], "local_files_only": True},
        huggingface_hub.hf_hub_download: {"filename": "", "revision": "", "local_dir": ""},
        huggingface_hub.HfApi.model_info: {"self": None, "revision": "", "timeout": 10},
    }
    for function, options in bind.items():
        inspect.signature(function).bind(repo_id="owner/name", **options)


def test_is_told_apart(monkeypatch):
    assert hub.installed()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert not hub.installed()
