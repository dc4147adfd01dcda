"""The messages of the configuration check for each wrong configuration in mistakes.yaml."""

import contextlib
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.golden.workplace import CONFIGURATION, HERE, Workplace

_ACCEPTED = "accepted"


def messages() -> dict[str, dict[str, str]]:
    """Return {group: {mistake: message}} for all mistakes that the check finds without a run."""
    from sealed_experts.configuration.resolution import load

    mistakes = _mistakes()
    sound = yaml.safe_dump(mistakes["sound"])

    def check(*texts: str, extra: dict[str, Any] | None = None) -> Callable[[], object]:
        def run() -> object:
            paths = [Path(f"{number}.yaml") for number in range(len(texts))]
            for path, text in zip(paths, texts, strict=True):
                path.write_text(text)
            return load(paths, root=Path.cwd(), extra=extra)

        return run

    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        _write_files(mistakes["files"])
        return {
            "changes": {
                _name(change): _message(check(yaml.safe_dump(_changed(mistakes["sound"], change))))
                for change in mistakes["changes"]
            },
            "layers": {_name(texts): _message(check(sound, *texts)) for texts in mistakes["layers"]},
            "texts": {text: _message(check(text)) for text in mistakes["texts"]},
            "command_line": {_name(extra): _message(check(sound, extra=extra)) for extra in mistakes["command_line"]},
        }


def dry_run_messages(workplace: Workplace) -> dict[str, str]:
    """Return {mistake: message} for mistakes that only a dry run of the workflow finds."""
    configuration = yaml.safe_load(CONFIGURATION.read_text())
    found = {}
    for change in _mistakes()["dry_runs"]:
        workplace.configure(_changed(configuration, change), "mistaken.yaml")
        told = workplace.snakemake("--dry-run", "--quiet", name="mistaken.yaml")
        message = told.stderr[told.stderr.find("error:") :] if "error:" in told.stderr else ""
        found[_name(change)] = message.strip() or (_ACCEPTED if told.returncode == 0 else told.stderr.strip())
    return found


def _mistakes() -> dict[str, Any]:
    return yaml.safe_load((HERE / "mistakes.yaml").read_text())


def _name(value: object) -> str:
    return json.dumps(value)


def _changed(document: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """Return a document with new values at dotted keys; null removes the key."""
    document = copy.deepcopy(document)
    for key, value in change.items():
        *parents, last = key.split(".")
        place = document
        for parent in parents:
            place = place.setdefault(parent, {})
        if value is None:
            place.pop(last, None)
        else:
            place[last] = value
    return document


def _write_files(files: dict[str, str]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    Path("link").symlink_to("results/base/mymodel")


def _message(check: Callable[[], object]) -> str:
    """Return the message with sorted mistakes, one per line: jsonschema visits keys in no fixed order."""
    try:
        check()
    except Exception as error:  # the recording shows any error
        first, *lines = f"{type(error).__name__}: {error}".replace(str(Path.cwd()), "<folder>").split("\n")
        return "\n".join([first, *sorted(lines)])
    return _ACCEPTED
