"""A job reads the files that the run was planned with, or says which ones changed."""

import hashlib
import json
import time

import pytest

from sealed_experts.errors import UserError
from sealed_experts.files.digest_cache import LOCATION, DigestCache
from sealed_experts.files.planned_digests import digests_text, unchanged

ONE = hashlib.sha256(b"1").hexdigest()


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_bytes(b"1")
    return tmp_path


def planned(*paths: str) -> str:
    return digests_text(paths, cache=DigestCache(None))


def test_the_text_is_canonical_json_with_null_for_what_cannot_be_read(here):
    assert planned("missing", "a") == f'{{"a":"{ONE}","missing":null}}'


def test_unchanged_files_are_read_in_peace():
    read = []
    with unchanged(planned("a", "missing")):
        read.append(1)
    with unchanged("{}"):
        read.append(2)
    assert read == [1, 2]


def test_a_file_that_changed_before_is_refused_and_the_block_never_starts(here):
    text = planned("a")
    (here / "a").write_bytes(b"2")
    with pytest.raises(UserError, match=r"^a: the content changed .* run the same command again"), unchanged(text):
        pytest.fail("the block ran")


def test_a_file_that_changes_during_the_block_is_refused(here):
    with pytest.raises(UserError, match=r"^a: the content changed"), unchanged(planned("a")):
        (here / "a").write_bytes(b"2")


def test_a_file_with_another_status_and_the_same_content_is_accepted(here):
    with unchanged(planned("a")):
        (here / "a").unlink()
        (here / "a").write_bytes(b"1")


def test_a_change_explains_an_error_of_the_block(here):

    def read(*, change):
        with unchanged(text):
            if change:
                (here / "a").write_bytes(b"half")
            raise UserError("row 7 cannot be read")

    text = planned("a")
    with pytest.raises(UserError, match="row 7"):
        read(change=False)
    with pytest.raises(UserError, match=r"^a: the content changed"):
        read(change=True)


@pytest.mark.parametrize("appears", [True, False])
def test_a_file_that_appeared_or_went_is_refused(here, appears):
    text = planned("a", "b")
    (here / "b").write_bytes(b"") if appears else (here / "a").unlink()
    with pytest.raises(UserError, match=f"^{'b' if appears else 'a'}: the content changed"), unchanged(text):
        pytest.fail("the block ran")


def test_many_changed_files_are_counted(here):
    names = [f"f{number}" for number in range(7)]
    text = json.dumps(dict.fromkeys(names, ONE))
    with pytest.raises(UserError, match="f0, f1, f2, f3, f4 and 2 more: "), unchanged(text):
        pytest.fail("the block ran")


def test_a_wrong_entry_in_the_cache_is_found_by_the_job_and_gone_for_the_next_plan(here):
    """Otherwise every further run would be planned wrongly and refused again."""
    time.sleep(0.3)
    assert digests_text(["a"], cache=DigestCache()) == planned("a")
    LOCATION.write_text(LOCATION.read_text().replace(ONE, "0" * 64))
    wrong = digests_text(["a"], cache=DigestCache())
    assert json.loads(wrong) == {"a": "0" * 64}
    with pytest.raises(UserError, match="the content changed"), unchanged(wrong):
        pytest.fail("the block ran")
    assert digests_text(["a"], cache=DigestCache()) == planned("a")


@pytest.mark.parametrize("text", ["", "[]", "7", '{"a": 7}', '{"a": null'])
def test_another_text_is_refused_in_plain_words(text):
    with pytest.raises(UserError, match="--digests"), unchanged(text):
        pytest.fail("the block ran")
