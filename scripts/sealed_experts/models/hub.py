"""Fetch a base model from the hub, a folder or a GGUF file, and put it into the results as a verified folder."""

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import read_json
from sealed_experts.models.adapters import is_target
from sealed_experts.models.bases import MODEL_FILES, base_kind, folder_of, gguf_file, is_within, model_files
from sealed_experts.models.classes import ModelClass
from sealed_experts.models.completeness import check_complete
from sealed_experts.models.gguf_base import convert_gguf
from sealed_experts.models.manifest import write_base_manifest
from sealed_experts.models.settings import BaseSettings
from sealed_experts.settings.messages import suggestion


def fetch_base(
    base: BaseSettings, *, key: str, folder: Path, classes: Iterable[ModelClass], targets: Iterable[str] = ()
) -> None:
    """Fill `folder` with the base's files and write its base.json.

    A hub model is fetched at its pinned revision through the hub's cache (HF_HOME, HF_TOKEN and HF_HUB_OFFLINE apply).
    Files are hard-linked if the file system allows it.

    Args:
        key: the base's name in the results.
        folder: the folder to fill.
        classes: classes of models that the base's architecture must have.
        targets: modules that adapters will change, by their names or the ends of their names.

    Raises:
        UserError: there is no network; the id or revision is unknown; the model is gated; the disk is full; the source
            is not a model of these classes with safetensors weights, or is inside `folder`.
    """
    with _source(base, beside=folder) as (source, name):
        modules = _checked_model(source, base, classes)
        _check_targets(targets, modules)
        try:
            _place(source, folder)
        except OSError as error:
            raise _disk_error(error, folder) from error
    write_base_manifest(folder, name=name, revision=base.revision, key=key, dtype=base.dtype, modules=modules)


@contextlib.contextmanager
def _source(base: BaseSettings, *, beside: Path) -> Iterator[tuple[Path, str]]:
    """Yield a folder with the base's files, and the base's name for packages: of a local path only the last part.

    Args:
        beside: a folder; a temporary one is made next to it.
    """
    kind = base_kind(base, root=Path())
    if kind == "folder":
        source = folder_of(base, root=Path())
        yield source, source.name
    elif kind == "gguf":
        file = gguf_file(base, root=Path())
        beside.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as folder:
            dtype = torch.bfloat16 if base.dtype == "bfloat16" else torch.float32
            try:
                convert_gguf(file, Path(folder), dtype=dtype)
            except OSError as error:
                raise _disk_error(error, beside) from error
            yield Path(folder), file.name
    else:
        yield _download(base), base.name


def _download(base: BaseSettings) -> Path:
    name, revision = base.name, base.revision
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except GatedRepoError as error:
        raise UserError(
            f"base.name: {name} is a gated model: accept its terms on the hub, and set HF_TOKEN to a token of an "
            "account that can read it"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"base.revision: {name} has no revision {revision!r}: give one of its commits") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"base.name: the hub has no model {name!r} (or it is private: then set HF_TOKEN); give a hub id such as "
            "Qwen/Qwen2.5-1.5B, or an existing folder"
        ) from error
    except (LocalEntryNotFoundError, ConnectionError, RevisionResolutionError, EntryNotFoundError) as error:
        raise UserError(
            f"base.name: {name} at revision {revision} is not in the local cache and the hub cannot be reached (no "
            "network, or HF_HUB_OFFLINE is set): fetch it once with network, or set base.name to a folder that holds it"
        ) from error
    except HfHubHTTPError as error:
        raise UserError(f"base.name: the hub refused {name}: {str(error).splitlines()[0]}") from error
    except OSError as error:
        raise _disk_error(error, Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))) from error


def _checked_model(source: Path, base: BaseSettings, classes: Iterable[ModelClass]) -> dict[str, list[int]]:
    if not (source / "config.json").is_file():
        raise UserError(f"base.name: {source} holds no readable config.json, so it is not a model folder")
    modules = check_complete(source, name=base.name, classes=classes)
    model_type = read_json(source / "config.json")["model_type"]
    if base.model_type is not None and base.model_type != model_type:
        raise UserError(
            f"base.model_type: {base.name} is a {model_type} model, not {base.model_type}: correct the setting"
        )
    return modules


def _check_targets(targets: Iterable[str], modules: Mapping[str, object]) -> None:
    """Check that the base has the modules: for example, the experts of a mixture-of-experts base are no modules."""
    for target in targets:
        if not any(is_target(module, target) for module in modules):
            known = sorted({name.rpartition(".")[2] for name in modules})
            raise UserError(
                f"adapter.target_modules: {target!r} is no linear module of this base; {suggestion(target, known)}"
            )


def _place(source: Path, folder: Path) -> None:
    """Replace the files in `folder` by those of the source. All new files are linked before an old one is removed."""
    if is_within(source, folder):
        raise UserError(
            f"base.name: {source} is in {folder}, which the pipeline makes and replaces: move the model out of it, or"
            " give `base.key` another name"
        )
    folder.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        names = _link_files(source, fresh)
        for stale in folder.iterdir():
            if stale.is_file():
                stale.unlink()
        for name in names:
            (fresh / name).replace(folder / name)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _link_files(source: Path, folder: Path) -> list[str]:
    files = model_files(source)
    for path in files:
        _link_or_copy(path.resolve(), folder / path.name)
    return [path.name for path in files]


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EACCES, errno.ENOTSUP):
            raise
        shutil.copyfile(source, target)


def _disk_error(error: OSError, place: Path) -> UserError | OSError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"no space left in {place} for the base model: free some disk space and run again")
    if error.errno in (errno.EACCES, errno.EROFS):
        return UserError(f"cannot write the base model to {place} ({error.strerror}): make it writable")
    return error
