"""A full disk at each write of a stage, of sealing and of assembly; a read-only disk; a folder that disappears."""

import gc
import importlib.util
import itertools
import shutil
import subprocess
import sys

import pytest

from sealed_experts.errors import UserError, reports_user_errors
from sealed_experts.files.home import home_folder
from sealed_experts.packages.keys import private_keys
from sealed_experts.packages.publishing import seal_as_expert
from sealed_experts.training import stage as stage_module
from sealed_experts.training.loop import TrainingLoop
from sealed_experts.training.stage import train_stage
from tests.conftest import ROOT
from tests.full_disk import FullDisk
from tests.mixtures import ROUTING, Workshop
from tests.unit.packages.test_seal_package import project
from tests.unit.training.test_stage import PLAIN, PRIVATE, comparable, make_job, supervised, train

# The seed gives its key, so that two folders give the same bits.
REPRODUCIBLE = PRIVATE.replace(mode="reproducible")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Leave out what takes most of a small run's time and is not part of these tests."""
    monkeypatch.setattr(stage_module, "check_gradients", lambda **_: None)
    monkeypatch.setattr(gc, "collect", lambda *_: 0)


@pytest.fixture
def disk(tmp_path):
    made = FullDisk(tmp_path / "disk")
    print(f"a full disk is made by: {made.how}")
    yield made
    made.remove()


def unfinished(folder):
    """Return files that an interrupted write has left."""
    return [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".draft", ".new"))]


def refusal(action):
    """Return the error message for the user; None if there was no error."""
    try:
        action()
    except UserError as error:
        return str(error)
    return None


def test_a_disk_full_at_each_write_of_a_stage_costs_nothing_but_the_run(disk, tmp_path, tiny_base, tiny_dataset):
    changes = {"privacy": REPRODUCIBLE, "max_steps": 2, "checkpoint_steps": 1, "eval_steps": 2}
    expected = comparable(train(make_job(tmp_path / "whole", tiny_base, tiny_dataset, **changes)))
    for number in itertools.count(1):
        job = make_job(disk.folder / str(number), tiny_base, tiny_dataset, **changes)
        with disk.full_from(number):
            message = refusal(lambda job=job: train_stage(job, supervised))
        if message is None:
            break
        assert "no space left while writing" in message
        assert not unfinished(disk.folder)
        assert comparable(train(job)) == expected
        shutil.rmtree(disk.folder / str(number))
    # Lock, run, journal, metrics and state, one checkpoint per step, the adapter.
    assert disk.opened > 12
    assert number > disk.opened


def test_a_disk_full_at_each_write_of_sealing_leaves_no_package_and_the_next_call_makes_it(disk, tmp_path, monkeypatch):
    publisher = private_keys.create_key(algorithms=["ed25519"]).fingerprint
    arguments = project(tmp_path / "project")
    keys = tmp_path / "keys"
    shutil.copytree(home_folder(), keys)
    main = _script("seal_package").main

    def seal(home, output):
        monkeypatch.setenv("SEALED_EXPERTS_HOME", str(home))
        monkeypatch.setattr(sys, "argv", ["x", *arguments, "--publisher", publisher, "--output", str(output)])
        return main()

    for number in itertools.count(1):
        home, output = disk.folder / f"home {number}", disk.folder / "packages" / f"{number}.tgsp"
        shutil.copytree(keys, home)
        with disk.full_from(number):
            code = seal(home, output)
        if code:
            assert not output.exists()
            assert not unfinished(disk.folder)
            assert seal(home, output) == 0
        # Never interrupted. Names of private data depend on the owner's key, which each home draws.
        whole = tmp_path / f"home {number}"
        shutil.copytree(keys, whole)
        shutil.copy2(home / "owner.key", whole)
        assert seal(whole, tmp_path / "whole.tgsp") == 0
        assert output.read_bytes() == (tmp_path / "whole.tgsp").read_bytes()
        if not code:
            break
    assert number > 3  # the owner's key, the release log, the draft
    package, sealed = output, disk.folder / "a.expert"
    with disk.full_from(1), pytest.raises(UserError, match="no space left"):
        seal_as_expert(package, output=sealed)
    assert not sealed.exists()
    assert not unfinished(disk.folder)
    seal_as_expert(package, output=sealed)


def test_a_disk_full_while_assembling_keeps_the_mixture_before_it(disk, tiny_base):
    workshop = Workshop(disk.folder / "results", tiny_base)
    workshop.make_data()
    for name in ROUTING:
        workshop.make_expert(name)
    expected = workshop.assemble()
    before = workshop.config.read_bytes()
    for number in itertools.count(1):
        with disk.full_from(number):
            message = refusal(lambda: workshop.assemble(workshop.run(rank_limit=30)))
        if message is None:
            break
        assert "no space left while writing" in message
        assert workshop.config.read_bytes() == before
        assert not unfinished(disk.folder)
    assert number > 1
    assert workshop.assemble() == expected
    assert workshop.config.read_bytes() == before


def test_a_log_on_a_full_disk_hides_neither_the_end_nor_its_code(capfd):
    """/dev/full refuses every byte, as a log on the full disk would."""
    program = (
        "import sys; from sealed_experts.errors import UserError, reports_user_errors\n"
        "def main():\n    print('x', flush=True)\n"
        "sys.exit(reports_user_errors(main)())"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode in (1, 120)  # Python ends with 120 if it cannot flush a stream at exit
    assert "error: no space left on a disk" in done.stderr
    assert "Traceback (most recent call last)" not in done.stderr.split("error: no space")[0]


def test_the_error_of_a_run_is_not_hidden_by_a_state_file_that_cannot_be_written(
    disk, tiny_base, tiny_dataset, monkeypatch
):
    job = make_job(disk.folder / "run", tiny_base, tiny_dataset, privacy=PLAIN)

    def fail(self):
        disk.full_from(1).__enter__()
        raise UserError("the real reason")

    monkeypatch.setattr(TrainingLoop, "train", fail)
    with pytest.raises(UserError, match="the real reason"):
        train_stage(job, supervised)


def test_a_read_only_disk_is_named_and_the_same_command_goes_on(disk, tiny_base, tiny_dataset):
    if disk.how != "tmpfs":
        pytest.skip("mounting is not allowed here")
    job = make_job(disk.folder / "run", tiny_base, tiny_dataset, privacy=REPRODUCIBLE, max_steps=2)
    expected = comparable(train(job))
    job.output.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(disk.folder)], check=True)
    with pytest.raises(UserError, match=r"cannot write .*Read-only file system.*make its folder writable"):
        train_stage(job, supervised)
    subprocess.run(["mount", "-o", "remount,rw", str(disk.folder)], check=True)
    assert comparable(train(job)) == expected


@pytest.mark.parametrize(
    ("privacy", "way"), [(REPRODUCIBLE, "deleted"), (PLAIN, "moved")], ids=["private-deleted", "plain-moved"]
)
def test_a_folder_taken_away_under_a_run_stops_it_and_nothing_is_half_there(
    tmp_path, tiny_base, tiny_dataset, monkeypatch, privacy, way
):
    job = make_job(tmp_path / "run", tiny_base, tiny_dataset, privacy=privacy, max_steps=4, checkpoint_steps=1)
    advance = TrainingLoop.advance

    def take_away(self, figures):
        advance(self, figures)
        if self.state.step == 2:
            folder = tmp_path / "run" / "sft"
            shutil.rmtree(folder) if way == "deleted" else folder.rename(tmp_path / "elsewhere")

    with monkeypatch.context() as patch:
        patch.setattr(TrainingLoop, "advance", take_away)
        with pytest.raises(UserError, match="was removed while this run was using it"):
            train_stage(job, supervised)
    assert not list(tmp_path.glob("run/**/*.pt"))
    if way == "moved":
        shutil.rmtree(tmp_path / "run" / "sft")
        (tmp_path / "elsewhere").rename(tmp_path / "run" / "sft")
    again = train(job)
    whole = train(make_job(tmp_path / "whole", tiny_base, tiny_dataset, privacy=privacy, max_steps=4))
    assert comparable(again) == comparable(whole)


def test_a_machine_without_memory_gets_one_line(capsys):
    def main():
        raise MemoryError

    assert reports_user_errors(main)() == 1
    assert capsys.readouterr().err.startswith("error: out of memory")


def _script(name):
    specification = importlib.util.spec_from_file_location(f"script_{name}", ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
