"""Compress and decompress the payload as one Zstandard frame (RFC 8878), in a stream, never beyond its stated size."""

import sys
from collections.abc import Iterable, Iterator
from typing import Any

from sealed_experts.errors import UserError
from sealed_experts.packages.errors import PackageError
from sealed_experts.packages.source import BLOCK, Buffer

COMPRESSIONS = ("none", "zstd")
LEVEL = 3
WINDOW_LOG = 21  # 2 MiB: memory that a reader needs


def compress(plain: Iterable[Buffer], *, size: int) -> Iterator[bytes]:
    """Yield one frame of `size` plain bytes. The frame's bytes depend on the library's version."""
    zstd = _library()
    options = {
        zstd.CompressionParameter.compression_level: LEVEL,
        zstd.CompressionParameter.window_log: WINDOW_LOG,
        zstd.CompressionParameter.content_size_flag: 1,
    }
    compressor = zstd.ZstdCompressor(options=options)
    compressor.set_pledged_input_size(size)
    for block in plain:
        yield compressor.compress(block)
    yield compressor.flush(zstd.ZstdCompressor.FLUSH_FRAME)


def decompress(stored: Iterable[Buffer], *, size: int) -> Iterator[bytes]:
    """Yield the content of one frame, a block at a time.

    Raises:
        PackageError: it is not one frame of exactly `size` plain bytes that needs a window of at most 2 MiB.
    """
    zstd = _library()
    options = {zstd.DecompressionParameter.window_log_max: WINDOW_LOG}
    decompressor, total = zstd.ZstdDecompressor(options=options), 0
    for block in stored:
        waiting: Buffer = block
        while not decompressor.eof:
            try:
                plain = decompressor.decompress(waiting, max_length=min(BLOCK, size - total + 1))
            except zstd.ZstdError as error:
                raise PackageError(f"the payload is not a readable Zstandard frame: {error}") from error
            total += len(plain)
            if total > size:
                raise PackageError(f"the payload decompresses to more than {size} bytes, the sum of the members' sizes")
            if plain:
                yield plain
            waiting = b""
            if decompressor.needs_input:
                break
        else:
            if decompressor.unused_data or len(waiting):
                raise PackageError("the payload has bytes after its Zstandard frame")
    if not decompressor.eof or total != size:
        raise PackageError(f"the payload decompresses to {total} bytes; the members' sizes sum to {size}")


def _library() -> Any:
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            import backports.zstd as zstd
    except ImportError as error:
        raise UserError(
            "the package is compressed with Zstandard, which is not installed: pip install backports.zstd"
        ) from error
    return zstd
