"""Warm starts: one process loads Snakemake, PyTorch and what rests on them, and forks for each start of a program.

A start then costs a tenth of a second instead of one (Snakemake) or five (training). The program itself, its module
files, arguments, environment, streams and folder are those of the start that it stands for. What a test kills is
never warm: the fork's parent is the server.
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

# Of this project nothing: its modules come from the folder of each program.
LIBRARIES = (
    *("cryptography.hazmat.primitives.hpke", "cryptography.x509", "jsonschema", "packaging.licenses", "pydantic"),
    *("rfc8785", "smart_open", "yaml"),
    *("snakemake.cli", "snakemake.executors.dryrun", "snakemake.workflow"),
    *("dp_accounting.pld.privacy_loss_distribution", "matplotlib.backends.backend_agg", "scipy.stats"),
    *("opacus.grad_sample.grad_sample_module", "peft", "safetensors.torch", "torch"),
    *("transformers.models.auto.modeling_auto", "transformers.models.qwen2.modeling_qwen2"),
)


def load_libraries() -> None:
    """Import what is slow to import, and leave it to itself when garbage is collected."""
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()


def serve(path: str) -> None:
    """Fork for every connection, and run there what it asks for."""
    load_libraries()
    sys.modules["snakemake.cli"].get_argument_parser()  # and the plugins
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
    size, streams, *_ = socket.recv_fds(connection, 4, 3)
    request = json.loads(connection.recv(int.from_bytes(size, "big"), socket.MSG_WAITALL))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    code = _exit_code_of(request["arguments"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _exit_code_of(arguments: list[str]) -> int:
    """Run a script or module as the interpreter does, and return the code that it would exit with."""
    try:
        if arguments[0] == "-m":
            sys.path[0], sys.argv = os.getcwd(), arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.path[0], sys.argv = str(Path(arguments[0]).parent.absolute()), arguments
            runpy.run_path(arguments[0], run_name="__main__")
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
