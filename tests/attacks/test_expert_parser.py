"""Whatever bytes stand where an `.expert` file is expected: our own error, quickly, and nothing is taken for honest."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert import plain_gzip, plain_tar
from sealed_experts.packages.expert.container import open_expert_bytes
from tests.attacks import building
from tests.attacks.expert_building import honest, packed, unpacked, zipped

NAMES = [*unpacked(honest()), "../x", "/x", "a/b", "LICENSE", "Manifest.json", "x" * 100]
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def opened(data: bytes) -> bool:
    """Whether a file is accepted. Any exception but ours fails the test."""
    try:
        open_expert_bytes(data, trust=building.trust())
    except PackageError as error:
        return "\n" in str(error)  # a refusal is one line
    return True


@QUICK
@given(data=st.binary(max_size=4096))
def test_any_bytes(data):
    assert not opened(data)
    assert not opened(plain_gzip.HEADER + data)


@QUICK
@given(data=st.binary(min_size=1, max_size=4096))
def test_any_content_of_a_sound_gzip(data):
    assert not opened(zipped(data))
    assert not opened(zipped(data.ljust(plain_tar.RECORD, b"\0")))


@QUICK
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(honest())), st.integers(0, 64), st.binary(max_size=64)), min_size=1, max_size=8
    )
)
def test_pieces_replaced_taken_out_and_put_in(edits):
    data = honest()
    for place, length, piece in edits:
        data = data[:place] + piece + data[place + length :]
    assert opened(data) == (data == honest())


@QUICK
@given(
    edits=st.lists(st.tuples(st.integers(0, 511), st.integers(0, 255)), min_size=1, max_size=4), member=st.integers(0)
)
def test_tar_headers_with_bytes_replaced_in_a_sound_gzip(edits, member):
    """The gzip layer is made anew, so that the tar layer itself has to notice."""
    members = unpacked(honest())
    content = bytearray(plain_gzip.PlainGzipReader(_memory(honest())).read(1 << 30))
    name = sorted(members)[member % len(members)]
    start = content.index(plain_tar.member_header(name, len(members[name])))
    before = bytes(content)
    for place, value in edits:
        content[start + place] = value
    assert opened(zipped(bytes(content))) == (bytes(content) == before)


@QUICK
@given(members=st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=300), max_size=8))
def test_any_members(members):
    assert not opened(packed(members))
    mixed = {**unpacked(honest()), **members}
    assert opened(packed(mixed)) == (packed(mixed) == honest())


def _memory(data: bytes):
    from sealed_experts.packages.source import Memory

    return Memory(data)
