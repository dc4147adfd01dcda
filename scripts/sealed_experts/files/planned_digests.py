"""What a rule tells its script about the user's files: the digests that the run was planned with."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping

from sealed_experts.errors import UserError
from sealed_experts.files.canonical import canonical_json, strict_json
from sealed_experts.files.digest_cache import DigestCache, forget

NAMED_FILES = 5


def digests_text(paths: Iterable[str], *, cache: DigestCache) -> str:
    """Return {path: SHA-256} as canonical JSON; null for a file that cannot be read: its reader reports that."""
    return canonical_json(cache.digests(paths))


@contextlib.contextmanager
def unchanged(planned: str) -> Iterator[None]:
    """Read files in the block, and be sure that they are those that the run was planned with.

    Every file is read before the block, without the cache on disk. After the block it is read again if its status has
    changed.

    Args:
        planned: what `digests_text` returned.

    Raises:
        UserError: a file has another content before or after the block; or `planned` is not such a text.
    """
    digests = _parsed(planned)
    cache = DigestCache(None)
    _compare(digests, cache)
    try:
        yield
    finally:
        _compare(digests, cache)  # also after an error: a file that changes explains it better


def _parsed(planned: str) -> Mapping[str, str | None]:
    try:
        digests = strict_json(planned)
    except ValueError as error:
        raise UserError(f"--digests is not JSON ({error}); it must map paths to SHA-256 digests") from error
    if not isinstance(digests, dict) or not all(isinstance(digest, str | None) for digest in digests.values()):
        raise UserError("--digests must be a JSON object that maps paths to SHA-256 digests")
    return digests


def _compare(planned: Mapping[str, str | None], cache: DigestCache) -> None:
    found = cache.digests(planned)
    changed = [path for path in planned if planned[path] != found[path]]
    if not changed:
        return
    forget()  # if it was the cache that was wrong, the next plan is right
    more = f" and {len(changed) - NAMED_FILES} more" if len(changed) > NAMED_FILES else ""
    raise UserError(
        f"{', '.join(changed[:NAMED_FILES])}{more}: the content changed after this run was planned; run the same"
        " command again when the file is complete"
    )
