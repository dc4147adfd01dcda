"""Small generated models and data, shared by all tests."""

import gc
import os
import signal
from pathlib import Path

import pytest

# One thread per process: tests run in parallel, and sums depend on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A background process ignores Ctrl-C, and a process under nohup ignores the end of its terminal. So would the
# processes that tests start and interrupt. Set a handler: unlike an ignored signal, a new program does not inherit it.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish():
    """Leave what the libraries have made to itself: each collection of garbage, several a run, went through it all."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Use a separate home, so that tests never touch the user's keys, trust and release log."""
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("SEALED_EXPERTS_KEY", raising=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """Return base.json of a tiny base model."""
    from tests.tiny import build_tiny_base

    return build_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory, worker_id):
    """Return the folder of a real base model, SmolLM2-135M-Instruct. All workers share it."""
    from tests.real_model import fetched_smollm2

    shared = tmp_path_factory.getbasetemp()
    return fetched_smollm2(shared if worker_id == "master" else shared.parent)


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Return the folder of a tiny prepared dataset."""
    from tests.tiny import build_tiny_dataset

    return build_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")
