"""Warm starts: one process loads PyTorch and what rests on it, and forks for each script that a run starts.

A start then costs a tenth of a second instead of five. The script itself, its module files, its arguments, files,
environment and working directory are those of the start that it stands for. What a test kills is never warm: the
fork's parent is the server.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import traceback
from pathlib import Path

# Of this project nothing: its modules come from the folder of each script.
LIBRARIES = (
    *("dp_accounting.pld.privacy_loss_distribution", "jsonschema", "matplotlib.backends.backend_agg"),
    *("opacus.grad_sample.grad_sample_module", "peft", "pydantic", "safetensors.torch", "scipy.stats", "torch"),
    *("transformers.models.auto.modeling_auto", "transformers.models.qwen2.modeling_qwen2"),
)


class WarmStarts:
    """Starts the server, and says which environment makes a run use it."""

    def __init__(self, folder: Path) -> None:
        self.environment = {"TESTS_WARM_SERVER": str(folder / "socket"), "PYTHONPATH": str(Path(__file__).parent)}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, __file__, folder / "socket"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._server.stdout.readline() == b"ready\n"

    def close(self) -> None:
        self._server.kill()
        self._server.wait(timeout=30)
        self._server.stdin.close()
        self._server.stdout.close()


def serve(path: str) -> None:
    """Fork for every connection, and run there what it asks for."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(16)
        print("ready", flush=True)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                code = 70
                try:
                    code = _run(connection)
                finally:
                    connection.sendall(bytes([code]))
                    os._exit(code)
            connection.close()
            with contextlib.suppress(ChildProcessError):  # none has ended
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _run(connection: socket.socket) -> int:
    """Be the start that a client asks for; return its exit code."""
    size, descriptors, *_ = socket.recv_fds(connection, 4, 3)
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = request["argv"]
    sys.path[0] = str(Path(sys.argv[0]).parent.absolute())
    code = _exit_code_of(sys.argv[0])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _exit_code_of(script: str) -> int:
    """Run a script as the interpreter does, and return the code that it would exit with."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
