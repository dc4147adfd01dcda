"""Read a file twice: the second reading is trusted only if the system keeps writers away."""

import contextlib
import mmap
import struct
import threading

import pytest

from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert import container as expert_container
from sealed_experts.packages.expert.container import verify_expert
from sealed_experts.packages.source import open_source
from sealed_experts.packages.tgsp import examination
from sealed_experts.packages.tgsp.package import verify_package
from tests.attacks import building, expert_building

NAN = struct.pack("<f", float("nan"))


def package_of_nan(container):
    """A package that a dishonest but trusted publisher signed: one of its weights is NaN."""
    arrays = building.tensors()
    next(iter(arrays.values()))[0, 0] = float("nan")
    package = building.with_member(building.WEIGHTS, building.weights(arrays))
    return package if container == "tgsp" else expert_building.converted(package)


@contextlib.contextmanager
def healed_between_readings(monkeypatch, path):
    """Between the two readings, write a finite number over the NaN, through a memory map made before."""
    with open(path, "r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        place = mapped.find(NAN)
        mapped[place : place + 4] = NAN  # the page is dirty now: writing to it again changes no time of the file
        for module, name in ((examination, "check_signatures"), (expert_container, "verify_signature")):
            checked = getattr(module, name)

            def then_write(*arguments, checked=checked, **named):
                checked(*arguments, **named)
                mapped[place : place + 4] = struct.pack("<f", 0.5)

            monkeypatch.setattr(module, name, then_write)
        yield


@pytest.mark.parametrize(("container", "verify"), [("tgsp", verify_package), ("expert", verify_expert)])
def test_weights_that_are_healed_between_two_readings_are_refused(tmp_path, monkeypatch, container, verify):
    path = tmp_path / f"p.{container}"
    path.write_bytes(package_of_nan(container))
    with pytest.raises(PackageError, match="not finite"):
        verify(path, trust=building.trust())
    refused = pytest.raises(PackageError, match=r"its SHA-256 is not|changed while it was read")
    with healed_between_readings(monkeypatch, path), refused:
        verify(path, trust=building.trust())


def test_a_file_that_somebody_may_write_to_is_not_taken_as_constant(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    with open_source(path) as source:
        assert source.constant, "no lease was granted: the file system of temporary files has none"
        source.check_unchanged()
    with open(path, "r+b"), open_source(path) as source:
        assert not source.constant


def test_a_writer_waits_until_the_file_has_been_read_and_is_noticed(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"content")
    begun, wrote = threading.Event(), threading.Event()

    def write():
        begun.set()
        with open(path, "r+b") as stream:
            stream.write(b"another")
        wrote.set()

    with open_source(path) as source:
        writer = threading.Thread(target=write)
        writer.start()
        begun.wait()
        assert not wrote.wait(0.3)
        assert source.read(0, 7) == b"content"
        with pytest.raises(PackageError, match="began to write"):
            source.check_unchanged()
    writer.join()
    assert path.read_bytes() == b"another"
