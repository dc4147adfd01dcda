"""The trust store: the publishers that the user trusts, one JSON file each."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from sealed_experts.errors import UserError
from sealed_experts.files.atomic import write_text
from sealed_experts.files.canonical import canonical_json
from sealed_experts.files.home import home_folder, private_folder, refuse_shared
from sealed_experts.files.locks import folder_lock
from sealed_experts.packages.errors import SignatureError
from sealed_experts.packages.keys.publisher import Publisher, check_required, check_usable, checked_name
from sealed_experts.packages.keys.signing import fingerprint
from sealed_experts.packages.keys.trust_entry import check_reason, check_scopes, entry_of, read_entry, refuse_weak


class TrustStore:
    """A fixed set of publishers. It includes revoked and expired ones, so that a refusal can name them.

    Raises:
        UserError: two publishers share a key, so a signature would not show which of them signed.
    """

    def __init__(self, publishers: Iterable[Publisher]) -> None:
        self._publishers: dict[str, Publisher] = {}
        self._by_key: dict[tuple[str, bytes], Publisher] = {}
        for publisher in publishers:
            for key in publisher.keys:
                known = self._by_key.setdefault((key.algorithm, key.raw), publisher)
                if known != publisher:
                    raise UserError(
                        f"the trusted publishers {known.name} and {publisher.name} have the same {key.algorithm} key: "
                        f"run `sealed-experts keys untrust {publisher.name}`, then trust again what is missing"
                    )
            self._publishers[publisher.fingerprint] = publisher

    def find(self, key_fingerprint: str) -> Publisher | None:
        """Return the publisher with this fingerprint, even if it is revoked or expired, or None."""
        return self._publishers.get(key_fingerprint)

    def publisher_of(self, signers: Sequence[tuple[str, bytes]], *, required: Sequence[str] | None = None) -> Publisher:
        """Return the publisher of these keys. The signatures themselves are not checked here.

        Args:
            signers: algorithm and raw public key of each signature in a file.
            required: the algorithms that must have signed; by default those of all keys of the publisher.

        Raises:
            SignatureError: a key is not trusted, revoked or expired; the keys belong to two publishers; or an algorithm
                is missing or given twice.
        """
        found = {self._known(algorithm, raw).fingerprint: self._known(algorithm, raw) for algorithm, raw in signers}
        if len(found) != 1:
            names = " and ".join(publisher.name for publisher in found.values()) or "nobody"
            raise SignatureError(f"the signatures are by {names}; a package has one publisher")
        publisher = next(iter(found.values()))
        signed = [algorithm for algorithm, _ in signers]
        if len(set(signed)) != len(signed):
            raise SignatureError(f"the signatures name an algorithm twice: {', '.join(signed)}")
        check_usable(publisher)
        check_required(publisher, signed=signed, required=required)
        return publisher

    def _known(self, algorithm: str, raw: bytes) -> Publisher:
        publisher = self._by_key.get((algorithm, raw))
        if publisher is None:
            raise SignatureError(
                f"the signature is by the key {fingerprint(raw)}, which is not trusted here; if you know its owner, "
                "get the public key from them and run `sealed-experts keys trust`"
            )
        return publisher

    def __iter__(self) -> Iterator[Publisher]:
        return iter(sorted(self._publishers.values(), key=lambda publisher: publisher.name))

    def __len__(self) -> int:
        return len(self._publishers)


def trust_folder() -> Path:
    """Return the folder of trusted publishers. It may not exist yet."""
    return home_folder() / "trust"


def load_trust(folder: Path | None = None) -> TrustStore:
    """Read the trust store. If it is missing, nobody is trusted.

    Raises:
        UserError: other users can change the store, its folder or a file in it; or a file in it is not an entry.
    """
    folder = folder or trust_folder()
    if not folder.is_dir():
        return TrustStore([])
    for each in (folder.parent, folder):
        refuse_shared(each)
    return TrustStore(read_entry(path) for path in sorted(folder.glob("*.json")))


def trust_publisher(publisher: Publisher) -> Publisher:
    """Add a publisher to the trust store, or replace its entry of the same name and Ed25519 key.

    Raises:
        UserError: the name belongs to another publisher; the key is known by another name, is revoked, or would lose
            an algorithm; a scope is not a pattern; or the key is weak.
    """
    for key in publisher.keys:
        refuse_weak(key, "this public key")
    check_scopes(publisher.scopes)
    with folder_lock(private_folder(trust_folder())):
        path = trust_folder() / f"{checked_name(publisher.name)}.json"
        known = load_trust()
        if path.exists() and read_entry(path).fingerprint != publisher.fingerprint:
            raise UserError(
                f"{publisher.name} is already the name of another trusted key ({path}): choose another --name"
            )
        former = known.find(publisher.fingerprint)
        if former is not None:
            _refuse_replacement(former, publisher)
        others = [entry for entry in known if entry.fingerprint != publisher.fingerprint]
        TrustStore([*others, publisher])
        write_text(path, canonical_json(entry_of(publisher)) + "\n")
    return publisher


def is_taken(name: str) -> bool:
    """Say whether the trust store has an entry of this name."""
    return (trust_folder() / f"{name}.json").exists()


def free_name(name: str, key_fingerprint: str) -> str:
    """Return a name that is not taken: `name` and as many digits of the fingerprint as needed.

    Raises:
        UserError: all such names are taken.
    """
    for digits in (8, 16, 32, 48):
        longer = f"{name[: 63 - digits]}-{key_fingerprint[:digits]}"
        if not is_taken(longer):
            return longer
    raise UserError(f"{longer} is already the name of another trusted key: untrust that one first")


def untrust_key(name_or_fingerprint: str) -> tuple[Publisher, ...]:
    """Remove a publisher from the trust store, by name or by its whole fingerprint.

    Returns:
        The removed entries: more than one if the key has several names.

    Raises:
        UserError: the store has no such publisher; or the publisher is revoked: without its entry it could be trusted
            again.
    """
    with folder_lock(private_folder(trust_folder())):
        entries = {path: read_entry(path) for path in sorted(trust_folder().glob("*.json"))}
        meant = {entry.fingerprint for entry in entries.values() if name_or_fingerprint in _names(entry)}
        if not meant:
            known = ", ".join(entry.name for entry in entries.values()) or "none"
            raise UserError(f"no trusted key is called {name_or_fingerprint!r}; trusted are: {known}")
        removed = {path: entry for path, entry in entries.items() if entry.fingerprint in meant}
        for path, entry in removed.items():
            if entry.revoked is not None:
                raise UserError(
                    f"{entry.name} is revoked, so it is refused already. Its entry makes sure that it is not trusted "
                    f"again; to undo this, delete {path}"
                )
        for path in removed:
            path.unlink()
    return tuple(removed.values())


def mark_revoked(publisher: Publisher, *, reason: str) -> Publisher:
    """Mark a publisher as revoked in the store, and return its entry. An entry is made if there is none.

    Raises:
        UserError: the reason is not one line of text, or another publisher is trusted with one of its keys.
    """
    check_reason(reason)
    with folder_lock(private_folder(trust_folder())):
        known = load_trust()
        entry = known.find(publisher.fingerprint) or publisher
        if entry.revoked is not None:
            return entry
        if entry is publisher and is_taken(entry.name):
            entry = replace(entry, name=free_name(entry.name, entry.fingerprint))
        entry = replace(entry, revoked=reason)
        # An entry that shares a key with another one would make the whole store unreadable.
        TrustStore([*(other for other in known if other.fingerprint != entry.fingerprint), entry])
        write_text(trust_folder() / f"{checked_name(entry.name)}.json", canonical_json(entry_of(entry)) + "\n")
    return entry


def _names(entry: Publisher) -> tuple[str, ...]:
    return entry.name, *(key.fingerprint for key in entry.keys)


def _refuse_replacement(former: Publisher, publisher: Publisher) -> None:
    if former.revoked is not None:
        raise UserError(f"the key {former.fingerprint} ({former.name}) was revoked here ({former.revoked})")
    if former.name != publisher.name:
        raise UserError(f"this key is already trusted as {former.name}: give that --name, or untrust it first")
    lost = [key for key in former.keys if key not in publisher.keys]
    if lost:
        raise UserError(
            f"{former.name} is trusted with the {lost[0].algorithm} key {lost[0].fingerprint}, which this file lacks: "
            f"ask its owner; if this is intended, run `sealed-experts keys untrust {former.name}` first"
        )
