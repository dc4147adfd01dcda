"""Small models and data made on the spot, shared by all tests."""

import gc
import os
import signal
from pathlib import Path

import pytest

# One thread a process: tests run side by side, and sums differ by thread count.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# What a shell starts in the background ignores Ctrl-C, and what nohup starts the end of its terminal. So would the
# processes that tests start and interrupt: a handler, unlike an ignored signal, ends with this process's program.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, lambda *_: None)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

ROOT = Path(__file__).resolve().parent.parent


def pytest_collection_finish():
    """Leave what the libraries have made to itself: each collection of garbage, several a run, went through it all."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory, monkeypatch):
    """Keys, trust and the release log of a test are never the user's."""
    monkeypatch.setenv("SEALED_EXPERTS_HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.delenv("SEALED_EXPERTS_KEY", raising=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """base.json of a tiny base model."""
    from tests.tiny import build_tiny_base

    return build_tiny_base(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory):
    """Folder of a tiny prepared dataset."""
    from tests.tiny import build_tiny_dataset

    return build_tiny_dataset(tmp_path_factory.mktemp("data") / "tiny")
