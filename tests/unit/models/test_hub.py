"""Fetching a base: the hub's real client on a local cache, a local folder, and a message for each way to fail."""

import errno
import json
import os
import shutil
from types import SimpleNamespace

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from sealed_experts.errors import UserError
from sealed_experts.models import hub
from sealed_experts.models.classes import CAUSAL
from sealed_experts.models.manifest import verify_base
from sealed_experts.models.settings import BaseSettings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
HUB_MODEL = BaseSettings(name="some-org/Some-Model", revision=COMMIT)


def fetch(base, folder):
    hub.fetch_base(base, key="some-model", folder=folder, classes=[CAUSAL])
    return verify_base(folder)


@pytest.fixture
def source(tiny_base, tmp_path):
    """A model folder of the user's, without base.json."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_base.parent, folder)
    (folder / "base.json").unlink()
    return folder


def test_a_cached_hub_model_is_taken_at_its_commit_without_network(tmp_path, source, monkeypatch):
    cache = tmp_path / "cache"
    snapshot = cache / "models--some-org--Some-Model" / "snapshots" / COMMIT
    shutil.copytree(source, snapshot)
    (snapshot / "pytorch_model.bin").write_bytes(b"a pickle")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    manifest = fetch(HUB_MODEL, tmp_path / "base")
    assert (manifest["name"], manifest["revision"]) == ("some-org/Some-Model", COMMIT)
    assert "pytorch_model.bin" not in manifest["files"]


def test_without_network_and_cache_the_message_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the local cache and the hub cannot be reached"):
        fetch(HUB_MODEL, tmp_path / "base")


def test_a_local_folder_is_linked_and_only_its_name_is_recorded(tmp_path, source):
    manifest = fetch(BaseSettings(name=str(source)), tmp_path / "base")
    assert manifest["name"] == "source"
    assert os.stat(source / "model.safetensors").st_ino == os.stat(tmp_path / "base" / "model.safetensors").st_ino


def test_another_file_system_gets_a_copy(tmp_path, source, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    fetch(BaseSettings(name=str(source)), tmp_path / "base")
    assert os.stat(source / "model.safetensors").st_ino != os.stat(tmp_path / "base" / "model.safetensors").st_ino


def test_fetching_again_drops_what_the_source_no_longer_has(tmp_path, source):
    fetch(BaseSettings(name=str(source)), tmp_path / "base")
    (source / "generation_config.json").unlink()
    assert "generation_config.json" not in fetch(BaseSettings(name=str(source)), tmp_path / "base")["files"]


def _http_error(kind):
    response = SimpleNamespace(headers={}, status_code=404, request=None, text="")
    return kind("404 Client Error.", response=response)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (_http_error(GatedRepoError), "is a gated model.*HF_TOKEN"),
        (_http_error(RepositoryNotFoundError), "the hub has no model 'some-org/Some-Model'"),
        (_http_error(RevisionNotFoundError), f"has no revision '{COMMIT}'"),
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (ConnectionError("no route to host"), "cannot be reached"),
    ],
    ids=["gated", "unknown", "revision", "disk full", "no network"],
)
def test_each_failure_of_a_download_is_told_apart(tmp_path, monkeypatch, error, told):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match=told):
        fetch(HUB_MODEL, tmp_path / "base")


def test_a_full_disk_while_copying_is_told(tmp_path, source, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(UserError, match="no space left"):
        fetch(BaseSettings(name=str(source)), tmp_path / "base")


def change_config(source, **values):
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_model_that_needs_its_own_code_is_refused(tmp_path, source):
    change_config(source, auto_map={"AutoModel": "evil.Model"})
    with pytest.raises(UserError, match="needs its own code"):
        fetch(BaseSettings(name=str(source)), tmp_path / "base")


def test_another_architecture_than_declared_is_refused(tmp_path, source):
    with pytest.raises(UserError, match="is a qwen2 model, not llama"):
        fetch(BaseSettings(name=str(source), model_type="llama"), tmp_path / "base")


def test_pickled_weights_are_refused(tmp_path, source):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"no \.safetensors weights"):
        fetch(BaseSettings(name=str(source)), tmp_path / "base")


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no readable config\.json"):
        fetch(BaseSettings(name=str(tmp_path / "empty")), tmp_path / "base")


@pytest.mark.parametrize("name", ["same", "inside", "link"])
def test_a_model_where_the_pipeline_keeps_its_own_is_not_deleted(tmp_path, source, name):
    target = tmp_path / "results" / "base" / "mymodel"
    shutil.copytree(source, target / "inner" if name == "inside" else target)
    given = {"same": target, "inside": target / "inner", "link": tmp_path / "link"}[name]
    if name == "link":
        given.symlink_to(target)
    before = {path.name: path.read_bytes() for path in given.iterdir()}
    with pytest.raises(UserError, match=r"give `base\.key`"):
        fetch(BaseSettings(name=str(given)), target)
    assert {path.name: path.read_bytes() for path in given.iterdir()} == before


def test_a_fetch_that_fails_half_way_leaves_the_old_base(tmp_path, source, monkeypatch):
    fetch(BaseSettings(name=str(source)), tmp_path / "base")
    link, calls = os.link, []

    def fail_later(*arguments):
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        link(*arguments)

    monkeypatch.setattr(os, "link", fail_later)
    with pytest.raises(UserError, match="no space left"):
        fetch(BaseSettings(name=str(source)), tmp_path / "base")
    assert verify_base(tmp_path / "base")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("base", "source")] == []


def test_a_tilde_of_nobody_is_a_name_like_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"base\.name"):
        fetch(BaseSettings(name="~nouser/x", revision=COMMIT), tmp_path / "base")
