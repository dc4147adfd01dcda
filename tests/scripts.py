"""The workflow's scripts, run in this process: to start an interpreter for each would cost up to seconds."""

import contextlib
import io
import os
import runpy
import subprocess
from unittest import mock

from tests.conftest import ROOT


def run_script(name: str, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run `scripts/<name>.py` with these arguments and, for its time, these additional environment variables.

    Returns:
        Its exit code and what it printed, as `subprocess.run` does.
    """
    command = [str(ROOT / "scripts" / f"{name}.py"), *map(str, arguments)]
    printed, said = io.StringIO(), io.StringIO()
    with (
        mock.patch("sys.argv", command),
        mock.patch.dict(os.environ, environment),
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(said),
    ):
        code = _exit_code_of(command[0])
    return subprocess.CompletedProcess(command, code, printed.getvalue(), said.getvalue())


def _exit_code_of(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return 0
