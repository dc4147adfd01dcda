"""Many dry-runs: one process loads Snakemake and forks for each, so that each takes half a second instead of three."""

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

SECONDS = 120


class Planner:
    """Asks Snakemake, through its own command line, what it would do in a project."""

    def __init__(self) -> None:
        self.server = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def close(self) -> None:
        self.server.stdin.close()
        self.server.wait(timeout=30)
        self.server.stdout.close()

    def plan(self, project, *targets: str, flags: tuple[str, ...] = (), check: bool = True, **keywords):
        """Return {rule: output files} of a dry-run, and its output."""
        from tests.workflow.conftest import jobs_of

        printed = project.folder.parent / "printed.txt"
        command = project.command(*targets, **keywords)
        arguments = ["-n", "--quiet", "host", *flags, *command[command.index("--cores") :]]
        request = {
            "folder": str(project.folder),
            "arguments": arguments,
            "environment": project.environment(),
            "printed": str(printed),
        }
        print(json.dumps(request), file=self.server.stdin, flush=True)
        code = int(self.server.stdout.readline())
        text = printed.read_text()
        assert not (check and code), f"snakemake {' '.join(arguments)} ended with {code}:\n{text}"
        return jobs_of(text), text


def serve() -> None:
    """For each line of standard input, plan in a child process and print its exit code."""
    import snakemake.cli

    # Import what every run imports, except this project's modules: the project's copy of them must be used.
    for name in ("cryptography.x509", "jsonschema", "smart_open", "snakemake.executors.dryrun", "snakemake.workflow"):
        importlib.import_module(name)
    snakemake.cli.get_argument_parser()  # and the plugins

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                _plan(snakemake.cli.main, json.loads(line))
            finally:
                os._exit(70)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _plan(main, request) -> None:
    signal.alarm(SECONDS)
    printed = os.open(request["printed"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = ["snakemake", *request["arguments"]]
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        if isinstance(stop.code, str):
            print(stop.code, flush=True)
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    # Do not import from the folder of this file.
    sys.path.remove(str(Path(__file__).parent))
    serve()
