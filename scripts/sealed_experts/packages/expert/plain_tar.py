"""tar (POSIX.1-1988, "ustar") of plain files: each list of members gives exactly one archive.

All header fields but name, size and checksum are constant: mode 0644, owner 0, time 0, type `0`, no owner's name.
"""

from collections.abc import Iterable

from sealed_experts.packages.errors import PackageError

BLOCK = 512
RECORD = 20 * BLOCK  # tar and Python's tarfile round an archive's length up to a multiple of this
MAX_SIZE = 8**11 - 1  # the largest number of eleven octal digits
_NAME = 100
_CHECKSUM = slice(148, 156)
_TYPES = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"5": "a folder",
    b"6": "a FIFO",
    b"S": "a sparse file",
    **dict.fromkeys((b"g", b"x", b"L", b"K"), "an extended header"),
}


def member_header(name: str, size: int) -> bytes:
    """Return the header of a plain file of `size` bytes. The name has 1 to 100 ASCII characters."""
    encoded = name.encode("ascii")
    if not 1 <= len(encoded) <= _NAME or not 0 <= size <= MAX_SIZE:
        raise ValueError(f"tar has no room for a member {name!a} of {size} bytes")
    fields = [
        encoded.ljust(_NAME, b"\0"),
        b"0000644\0",  # mode
        b"0000000\0",  # uid
        b"0000000\0",  # gid
        b"%011o\0" % size,
        b"%011o\0" % 0,  # time
        b" " * 8,  # checksum: counted as spaces
        b"0",  # type: a plain file
        bytes(100),  # target of a link
        b"ustar\00000",
        bytes(32 + 32),  # owner's and group's name
        bytes(8 + 8),  # device numbers
        bytes(155 + 12),  # prefix of the name, and padding
    ]
    header = bytearray(b"".join(fields))
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


def read_header(header: bytes) -> tuple[str, int] | None:
    """Return name and size of a member, or None for the zeros after the last one.

    Raises:
        PackageError: the header is not exactly what `member_header` gives for this name and size.
    """
    if header == bytes(BLOCK):
        return None
    name_field, type_flag, size_field = header[:_NAME], header[156:157], header[124:136]
    name = name_field.rstrip(b"\0").decode("ascii", errors="replace")
    if type_flag in _TYPES:
        raise PackageError(f"member {name!a}: it is {_TYPES[type_flag]}; an .expert package holds plain files only")
    try:
        size = int(size_field[:11], 8) if size_field[:11].isdigit() else -1
        expected = member_header(name, size)
    except ValueError:  # UnicodeEncodeError among them
        expected = b""
    if header != expected:
        raise PackageError(
            f"member {name!a}: its tar header is not that of a plain file of mode 0644, owner 0 and time 0: the file"
            " was altered, or another program wrote it; unpack it with tar, look at its content, and run"
            " `sealed-experts publish` on the folder to seal it again"
        )
    return name, size


def padding(size: int) -> bytes:
    """Return the zeros after a member of `size` bytes."""
    return bytes(-size % BLOCK)


def archive_size(sizes: Iterable[int]) -> int:
    """Return the length of an archive whose members have these sizes."""
    length = sum(BLOCK + size + len(padding(size)) for size in sizes)
    return -(-(length + 2 * BLOCK) // RECORD) * RECORD
