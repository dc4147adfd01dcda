"""The cache of digests: when a file is read again, and that a broken or shared cache never gives a wrong answer."""

import hashlib
import json
import multiprocessing
import os
import stat
import time

import pytest

from sealed_experts.files import digest_cache
from sealed_experts.files.digest_cache import DigestCache, forget
from sealed_experts.files.regular_file import open_regular

CLOCK = 0.3  # seconds; more than any local file system's tick


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache_file(tmp_path):
    return tmp_path / "hidden" / "digests.json"


@pytest.fixture
def read_files(monkeypatch):
    """Every path that is read, in order; not those that only have their status looked at."""
    paths = []

    def counting(path):
        paths.append(path)
        return open_regular(path)

    monkeypatch.setattr(digest_cache, "open_regular", counting)
    return paths


def status_of(path) -> str:
    """Return the key of a file's entry."""
    status = os.stat(path)
    return ":".join(str(getattr(status, f"st_{name}")) for name in ("dev", "ino", "size", "mtime_ns", "ctime_ns"))


def settled(path, content: bytes):
    """Write a file whose last change is long enough ago for the cache to remember it."""
    path.write_bytes(content)
    time.sleep(CLOCK)
    return str(path)


def test_a_file_is_read_once_and_its_digest_is_that_of_hashlib(tmp_path, cache_file, read_files):
    one, two = settled(tmp_path / "one", b"1"), settled(tmp_path / "two", b"2" * 3_000_000)
    expected = {one: sha256(b"1"), two: sha256(b"2" * 3_000_000)}
    assert DigestCache(cache_file).digests([one, two]) == expected
    assert DigestCache(cache_file).digests([two, one]) == expected
    assert read_files == [one, two]
    assert stat.S_IMODE(cache_file.stat().st_mode) == 0o600


def test_an_older_file_put_in_its_place_is_read(tmp_path, cache_file):
    path = settled(tmp_path / "a", b"wrong")
    DigestCache(cache_file).digests([path])
    backup = settled(tmp_path / "backup", b"right")
    os.utime(backup, (1_000_000_000, 1_000_000_000))
    os.replace(backup, path)
    assert DigestCache(cache_file).digests([path]) == {path: sha256(b"right")}


def test_the_same_inode_size_and_time_with_another_time_of_change_is_read(tmp_path, cache_file):
    path = settled(tmp_path / "a", b"wrong")
    before = os.stat(path)
    DigestCache(cache_file).digests([path])
    (tmp_path / "a").write_bytes(b"right")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = os.stat(path)
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert DigestCache(cache_file).digests([path]) == {path: sha256(b"right")}


def test_a_touched_file_is_read_and_has_its_old_digest(tmp_path, cache_file, read_files):
    path = settled(tmp_path / "a", b"same")
    first = DigestCache(cache_file).digests([path])
    os.utime(path)
    assert DigestCache(cache_file).digests([path]) == first
    assert read_files == [path, path]


def test_a_file_that_was_just_changed_is_not_remembered(tmp_path, cache_file, read_files, monkeypatch):
    """It may change again within the same tick of the file system's clock, and keep its status."""
    monkeypatch.setattr(digest_cache, "TICK_NS", 3_600 * 10**9)
    path = settled(tmp_path / "a", b"1")
    for _ in range(2):
        assert DigestCache(cache_file).digests([path]) == {path: sha256(b"1")}
    assert read_files == [path, path]


def test_what_cannot_be_read_has_no_digest_and_nothing_waits(tmp_path, cache_file):
    os.mkfifo(tmp_path / "fifo")
    names = [str(tmp_path / "fifo"), str(tmp_path / "missing"), str(tmp_path), "nul\0nul"]
    assert DigestCache(cache_file).digests(names) == dict.fromkeys(names)
    assert not cache_file.exists()


WRONG = '{"version": 1, "digests": {"1:2:3:4:5": %s}}'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"{",
        b"[]",
        b"null",
        b'{"version": 1}',
        b'{"version": 2, "digests": {}}',
        b'{"version": 1, "digests": []}',
        *((WRONG % value).encode() for value in ("null", "7", '"abc"', '"' + "A" * 64 + '"')),
        b'{"version": 1, "digests": {' + b" " * digest_cache.LARGEST_CACHE + b"}}",
    ],
    ids=lambda content: content[:45].decode(errors="replace") or "empty",
)
def test_a_broken_cache_is_ignored_and_written_again(tmp_path, cache_file, read_files, content):
    path = settled(tmp_path / "a", b"1")
    cache_file.parent.mkdir()
    cache_file.write_bytes(content)
    for _ in range(2):
        assert DigestCache(cache_file).digests([path]) == {path: sha256(b"1")}
    assert read_files == [path]
    assert list(json.loads(cache_file.read_text())["digests"].values()) == [sha256(b"1")]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "folder"])
def test_something_else_in_the_caches_place_only_costs_time(tmp_path, cache_file, read_files, make):
    path = settled(tmp_path / "a", b"1")
    cache_file.parent.mkdir()
    make(cache_file)
    assert DigestCache(cache_file).digests([path]) == {path: sha256(b"1")}
    assert read_files == [path]


def test_a_cache_whose_folder_is_a_file_only_costs_time(tmp_path, cache_file):
    path = settled(tmp_path / "a", b"1")
    cache_file.parent.write_text("")
    assert DigestCache(cache_file).digests([path]) == {path: sha256(b"1")}


def _fill(folder, cache_file, start):
    start.wait()
    for number in range(40):
        DigestCache(cache_file).digests([str(folder / f"{number}")])


def test_writers_at_the_same_time_leave_a_whole_cache_with_right_digests(tmp_path, cache_file):
    folders = [tmp_path / f"folder {number}" for number in range(4)]
    for folder in folders:
        folder.mkdir()
        for number in range(40):
            (folder / f"{number}").write_text(f"{folder.name} {number}")
    time.sleep(CLOCK)
    context = multiprocessing.get_context("fork")
    start = context.Barrier(len(folders))
    processes = [context.Process(target=_fill, args=(folder, cache_file, start)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(folders)
    assert [path.name for path in cache_file.parent.iterdir()] == [cache_file.name]
    entries = json.loads(cache_file.read_text())["digests"]
    right = {status_of(path): sha256(path.read_bytes()) for folder in folders for path in folder.iterdir()}
    assert entries.items() <= right.items()
    assert len(entries) >= 40  # those of the last writer at least


def test_the_oldest_entries_go_when_there_are_too_many(tmp_path, cache_file, monkeypatch):
    monkeypatch.setattr(digest_cache, "MOST_ENTRIES", 2)
    for number in range(3):
        (tmp_path / f"{number}").write_text(f"{number}")
    time.sleep(CLOCK)
    for number in range(3):
        DigestCache(cache_file).digests([str(tmp_path / f"{number}")])
    assert list(json.loads(cache_file.read_text())["digests"].values()) == [sha256(b"1"), sha256(b"2")]


def test_many_bytes_to_read_are_announced_and_only_then(tmp_path, cache_file, monkeypatch):
    monkeypatch.setattr(digest_cache, "ANNOUNCED_BYTES", 999)
    said = []
    small, large = settled(tmp_path / "small", b"1"), settled(tmp_path / "large", b"2" * 1000)
    DigestCache(cache_file, announce=said.append).digests([small])
    assert said == []
    for _ in range(2):
        DigestCache(cache_file, announce=said.append).digests([large])
    assert len(said) == 1
    assert "large" in said[0]


def test_a_cache_without_a_file_remembers_and_writes_nothing(tmp_path, read_files):
    path = settled(tmp_path / "a", b"1")
    cache = DigestCache(None)
    assert cache.digests([path]) == cache.digests([path])
    assert read_files == [path]
    assert [each.name for each in tmp_path.iterdir()] == ["a"]


def test_a_forgotten_cache_is_gone_and_may_be_missing(tmp_path, cache_file):
    DigestCache(cache_file).digests([settled(tmp_path / "a", b"1")])
    forget(cache_file)
    assert not cache_file.exists()
    forget(cache_file)
