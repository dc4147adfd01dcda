"""The archive of an `.expert` file: a plain tar in a plain gzip. Each list of members gives exactly one archive.

This module does not know what the members mean or who signed them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.expert import plain_tar
from sealed_experts.packages.expert.plain_gzip import PlainGzipContent, PlainGzipReader, PlainGzipWriter
from sealed_experts.packages.source import BLOCK as PIECE
from sealed_experts.packages.source import BytesOrFile, Source, content_blocks


def write_archive(stream: IO[bytes], members: Mapping[str, BytesOrFile], *, sizes: Mapping[str, int]) -> None:
    """Write the archive of these members, sorted by name.

    Raises:
        UserError: a member's file cannot be read, or its size is not the one in `sizes`.
    """
    total = plain_tar.archive_size(sizes.values())
    writer = PlainGzipWriter(stream, size=total)
    written = 0
    for name in sorted(members):
        size = sizes[name]
        writer.write(plain_tar.member_header(name, size))
        found = 0
        for piece in content_blocks(members[name]):
            found += len(piece)
            if found <= size:
                writer.write(piece)
        if found != size:
            raise UserError(f"member {name} changed while it was sealed: it had {size} bytes, now {found}; run again")
        writer.write(plain_tar.padding(size))
        written += plain_tar.BLOCK + size + len(plain_tar.padding(size))
    writer.write(bytes(total - written))
    writer.finish()


@dataclass(kw_only=True)
class MemberSource:
    """A member of a completely read archive, as a source of bytes."""

    content: PlainGzipContent
    start: int
    size: int

    @property
    def constant(self) -> bool:
        """Whether two reads of one place give the same bytes, unless `check_unchanged` raises."""
        return self.content.constant

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly `length` bytes.

        Raises:
            PackageError: there are fewer.
        """
        if offset + length > self.size:
            raise PackageError(f"it is cut short: {self.size} bytes where {offset + length} are expected")
        return self.content.read(self.start + offset, length)

    def check_unchanged(self) -> None:
        """Raise PackageError if the file may have changed since it was opened."""
        self.content.check_unchanged()


class ArchiveReader:
    """Reads an archive member by member. All other bytes must be exactly those that our writer writes."""

    def __init__(self, source: Source, *, limits: Mapping[str, int]) -> None:
        """Read the start.

        Args:
            source: the file.
            limits: the allowed names of members, each with its largest size in bytes.

        Raises:
            PackageError: the file is not encoded as our writer encodes it.
        """
        self._source = source
        self._gzip = PlainGzipReader(source, unit=plain_tar.RECORD)
        self._limits = limits
        self._sizes: dict[str, int] = {}
        self._starts: dict[str, int] = {}
        self._position = 0

    def members(self) -> Iterator[tuple[str, int, Iterator[bytes]]]:
        """Yield name, size and content of each member. Read each content to its end before asking for the next one.

        Name and size are checked before the content is read. At the end everything is checked except gzip's trailer.

        Raises:
            PackageError: a header, a name, a size or the padding is not what it must be.
        """
        while (entry := plain_tar.read_header(self._take(plain_tar.BLOCK))) is not None:
            name, size = entry
            self._check_entry(name, size)
            self._starts[name] = self._position
            end = self._position + size
            yield name, size, self._content(end)
            if self._position != end:
                raise ValueError(f"member {name} was not read to its end")
            self._expect_zeros(len(plain_tar.padding(size)), f"after member {name}")
            self._sizes[name] = size
        rest = plain_tar.archive_size(self._sizes.values()) - self._position
        if self._position + rest != self._gzip.size:
            raise PackageError(f"the archive has {self._gzip.size} bytes, but its members need {self._position + rest}")
        self._expect_zeros(rest, "after the last member")

    def finish(self) -> str:
        """Check gzip's trailer after all members were read, and return the file's SHA-256.

        Raises:
            PackageError: the trailer does not match the content.
        """
        self._gzip.finish()
        return self._gzip.digest()

    def member(self, name: str) -> "MemberSource":
        """Return a member that was read already, to read any part of it again."""
        content = PlainGzipContent(self._source, size=self._gzip.size)
        return MemberSource(content=content, start=self._starts[name], size=self._sizes[name])

    def _check_entry(self, name: str, size: int) -> None:
        if name not in self._limits:
            raise PackageError(
                f"member {name!a} is foreign: an .expert package holds only {', '.join(sorted(self._limits))}"
            )
        last = next(reversed(self._sizes), "")
        if name <= last:
            problem = "occurs twice" if name in self._sizes else f"comes after {last}"
            raise PackageError(f"member {name}: it {problem}; members are unique and sorted by name")
        if size > self._limits[name]:
            raise PackageError(f"member {name}: {size} bytes; at most {self._limits[name]} are allowed")
        if size > self._gzip.size - self._position:
            raise PackageError(f"member {name}: {size} bytes, which the file cannot hold")

    def _content(self, end: int) -> Iterator[bytes]:
        while self._position < end:
            yield self._take(min(PIECE, end - self._position))

    def _take(self, count: int) -> bytes:
        piece = self._gzip.read(count)
        self._position += len(piece)
        if len(piece) != count:
            raise PackageError(f"the archive is cut short: it ends at byte {self._position}, inside a member")
        return piece

    def _expect_zeros(self, count: int, where: str) -> None:
        if self._take(count) != bytes(count):
            raise PackageError(f"the padding {where} is not zeros: the file was altered")
