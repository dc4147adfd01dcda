"""The only tar.gz of a list of members, compared with what Python's own modules read and write."""

import gzip
import io
import tarfile
import zlib

import pytest

from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert import plain_gzip, plain_tar
from sealed_experts.packages.expert.archive import ArchiveReader, write_archive
from sealed_experts.packages.source import Memory

MEMBERS = {"a.txt": b"first" * 40, "b": b"", "c.json": b"{}" * 256, "d": bytes(range(256)) * 700}
LIMITS = dict.fromkeys(MEMBERS, 1 << 20)


def written(members=MEMBERS) -> bytes:
    stream = io.BytesIO()
    write_archive(stream, members, sizes={name: len(content) for name, content in members.items()})
    return stream.getvalue()


def read(data: bytes, limits=LIMITS) -> dict[str, bytes]:
    reader = ArchiveReader(Memory(data), limits=limits)
    members = {name: b"".join(content) for name, _, content in reader.members()}
    reader.finish()
    return members


def tarred(members=MEMBERS, **changes) -> bytes:
    """Return the archive that Python's tarfile writes for plain files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            for field, value in changes.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(members[name]))
    return stream.getvalue()


def zipped(content: bytes) -> bytes:
    """Return the gzip file of any content."""
    stream = io.BytesIO()
    writer = plain_gzip.PlainGzipWriter(stream, size=len(content))
    writer.write(content)
    writer.finish()
    return stream.getvalue()


def test_the_tar_is_what_pythons_tarfile_writes():
    assert gzip.decompress(written()) == tarred()


def test_what_is_written_is_read_again():
    assert read(written()) == MEMBERS


def test_the_gzip_has_stored_blocks_only_and_a_constant_header():
    """The blocks are read here by RFC 1951, with other code."""
    data, content = written(), tarred()
    assert data[:10] == bytes.fromhex("1f8b08000000000000ff")
    position, found, final = 10, b"", 0
    while not final:
        final, length = data[position], int.from_bytes(data[position + 1 : position + 3], "little")
        assert final in (0, 1)
        assert int.from_bytes(data[position + 3 : position + 5], "little") == length ^ 0xFFFF
        assert final or length == 65_535
        found += data[position + 5 : position + 5 + length]
        position += 5 + length
    assert found == content
    assert data[position:] == zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little")


@pytest.mark.parametrize("size", [1, 65_534, 65_535, 65_536, 131_070, 131_071])
def test_contents_around_a_blocks_length(size):
    content = bytes(size)
    data = zipped(content)
    assert gzip.decompress(data) == content
    assert len(data) == plain_gzip.compressed_size(size)
    assert plain_gzip.content_size(len(data)) == size
    reader = plain_gzip.PlainGzipReader(Memory(data))
    assert reader.read(size + 1) == content
    reader.finish()
    anywhere = plain_gzip.PlainGzipContent(Memory(data), size=size)
    for offset in (0, size // 2, size - 1):
        assert anywhere.read(offset, size - offset) == content[offset:]
    with pytest.raises(PackageError, match="cut short"):
        anywhere.read(1, size)


def test_a_size_that_no_content_gives_is_known():
    possible = {plain_gzip.compressed_size(size) for size in range(1, 140_000)}
    for size in range(140_000):
        assert (plain_gzip.content_size(size) is not None) == (size in possible)


def test_a_members_bytes_can_be_read_again_at_any_place():
    reader = ArchiveReader(Memory(written()), limits=LIMITS)
    for _, _, content in reader.members():
        list(content)
    source = reader.member("d")
    assert source.size == len(MEMBERS["d"])
    assert source.read(65_000, 100_000) == MEMBERS["d"][65_000:165_000]
    with pytest.raises(PackageError, match="cut short"):
        source.read(source.size - 1, 2)


def test_members_may_come_from_files(tmp_path):
    for name, content in MEMBERS.items():
        (tmp_path / name).write_bytes(content)
    stream = io.BytesIO()
    sizes = {name: len(content) for name, content in MEMBERS.items()}
    write_archive(stream, {name: tmp_path / name for name in MEMBERS}, sizes=sizes)
    assert stream.getvalue() == written()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": 0o600}, "its tar header is not"),
        ({"uid": 1000}, "its tar header is not"),
        ({"mtime": 1}, "its tar header is not"),
        ({"uname": "root"}, "its tar header is not"),
        ({"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}, "a symbolic link"),
        ({"type": tarfile.LNKTYPE, "linkname": "a.txt"}, "a hard link"),
        ({"type": tarfile.CHRTYPE}, "a device"),
        ({"type": tarfile.BLKTYPE}, "a device"),
        ({"type": tarfile.FIFOTYPE}, "a FIFO"),
        ({"type": tarfile.DIRTYPE}, "a folder"),
        ({"type": tarfile.XHDTYPE}, "an extended header"),
        ({"type": tarfile.AREGTYPE}, "its tar header is not"),
        ({"type": tarfile.CONTTYPE}, "its tar header is not"),
    ],
)
def test_any_other_header_is_refused(changes, message):
    with pytest.raises(PackageError, match=f"member 'a.txt/?': .*{message}"):
        read(zipped(tarred({"a.txt": b"text"}, **changes)))


@pytest.mark.parametrize(
    "name",
    ["../a.txt", "/a.txt", "./a.txt", "a/b", "A.txt", "a.txt ", ".hidden", "a\\b", "weights.pkl", "C:a", "a\x1b[2J"],
)
def test_a_name_outside_the_list_is_refused_before_its_content_is_read(name):
    bomb = {name: b"x"}
    data = zipped(tarred(bomb))
    with pytest.raises(PackageError, match="is foreign"):
        read(data)


@pytest.mark.parametrize("order", [["b", "a.txt"], ["b", "b"]])
def test_members_out_of_order_or_twice_are_refused(order):
    archive = b"".join(plain_tar.member_header(name, 0) for name in order)
    with pytest.raises(PackageError, match=f"member {order[1]}: it (comes after|occurs twice)"):
        read(zipped(archive.ljust(10_240, b"\0")))


@pytest.mark.parametrize("size", [(1 << 20) + 1, plain_tar.MAX_SIZE])
def test_a_size_beyond_its_limit_is_refused_before_anything_is_read(size):
    archive = plain_tar.member_header("a.txt", size).ljust(10_240, b"\0")
    with pytest.raises(PackageError, match="at most 1048576 are allowed"):
        read(zipped(archive))
    small = plain_tar.member_header("a.txt", 1 << 20).ljust(10_240, b"\0")
    with pytest.raises(PackageError, match="which the file cannot hold"):
        read(zipped(small))


def test_padding_and_trailer_must_be_zeros():
    for place in (512 + 200, 512 + 511, 10_239):
        content = bytearray(tarred({"a.txt": MEMBERS["a.txt"]}))
        content[place] = 1
        with pytest.raises(PackageError, match="not zeros"):
            read(zipped(bytes(content)))


def test_more_or_fewer_zeros_at_the_end_are_refused():
    content = tarred({"a.txt": b"x"})
    for other in (content + bytes(10_240), content[: 4 * 512]):
        with pytest.raises(PackageError, match=r"but its members need|cut short"):
            read(zipped(other))


@pytest.mark.parametrize("level", [0, 1, 9])
def test_another_encoding_of_the_same_tar_says_how_to_seal_it_again(level):
    """This includes level 0 of a library: its stored blocks have other lengths."""
    data = gzip.compress(tarred(), compresslevel=level, mtime=0)
    with pytest.raises(PackageError, match="run `sealed-experts publish` on the folder"):
        read(data)
    with pytest.raises(PackageError, match=r"run `sealed-experts publish` on the folder|impossible size"):
        read(data[:9] + b"\xff" + data[10:])


def test_a_gzip_of_several_members_and_one_with_a_name_are_refused():
    half = zipped(tarred())
    with pytest.raises(PackageError):
        read(half + half)
    stream = io.BytesIO()
    with gzip.GzipFile(filename="expert.tar", mode="wb", fileobj=stream, mtime=0) as file:
        file.write(tarred())
    with pytest.raises(PackageError, match="its gzip header"):
        read(stream.getvalue())


def test_a_wrong_checksum_is_refused():
    for place in (-1, -5):
        data = bytearray(written())
        data[place] ^= 1
        with pytest.raises(PackageError, match="its gzip layer has"):
            read(bytes(data))
