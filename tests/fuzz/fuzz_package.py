"""Coverage-guided fuzzing (atheris) of everything that reads a package: see README.md beside this file."""

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sealed_experts"]):
    from tests.attacks import building

    from sealed_experts.errors import UserError
    from sealed_experts.packages.content.linter import read_adapter_config
    from sealed_experts.packages.content.manifest import canonical_object, parse_manifest
    from sealed_experts.packages.content.tensors import read_tensors
    from sealed_experts.packages.recipients import encryption
    from sealed_experts.packages.tgsp.compression import compress, decompress
    from sealed_experts.packages.tgsp.package import open_bytes

HONEST = building.package()
MANIFEST, MEMBERS = building.parts()
IDENTITY = encryption.Identity(bytes(range(96)))
TRUST = building.trust()


def whole_file(data: bytes) -> None:
    """The file itself, which no honest key has signed."""
    open_bytes(data, trust=TRUST)


def edited_file(data: bytes) -> None:
    """An honest file with a stretch replaced: the first two bytes say where."""
    place = int.from_bytes(data[:2], "big") % len(HONEST)
    open_bytes(HONEST[:place] + data[2:] + HONEST[place + len(data) - 2 :], trust=TRUST)


def signed_parts(data: bytes) -> None:
    """Manifest, recipients and payload under a good signature."""
    manifest, _, rest = data.partition(b"\xff\xfe")
    recipients, _, payload = rest.partition(b"\xff\xfe")
    parts = {"manifest": manifest.ljust(2), "recipients": recipients, "payload": payload}
    open_bytes(building.sealed_parts(**parts, by=building.key()), trust=TRUST, identity=IDENTITY)


def member(data: bytes) -> None:
    """A member under a good signature and a manifest that states its size and digest."""
    names = sorted(MEMBERS)
    open_bytes(building.with_member(names[data[0] % len(names)], data[1:]), trust=TRUST)


def frame(data: bytes) -> None:
    """A compressed payload."""
    for _ in decompress([data[:10], data[10:]], size=1000):
        pass


TARGETS = (
    whole_file,
    edited_file,
    signed_parts,
    member,
    parse_manifest,
    read_adapter_config,
    encryption.parse_recipients,
    frame,
    lambda data: read_tensors(data, member="weights"),
    lambda data: canonical_object(data, "member"),
)


def write_seeds(folder: Path) -> None:
    """Write inputs that each reader accepts, or nearly, for the fuzzer to start from."""
    manifest, payload = building.frame().manifest, building.payload()
    recipients = encryption.wrap_key(bytes(32), recipients=[IDENTITY.recipient], manifest=manifest)
    seeds = [
        HONEST,
        b"\x00\x1e" + HONEST[30:60],
        b"\xff\xfe".join([manifest, b"", payload]),
        b"\x01" + MEMBERS["adapter_config.json"],
        manifest,
        MEMBERS["adapter_config.json"],
        recipients,
        b"".join(compress([bytes(1000)], size=1000)),
        MEMBERS["adapter_model.safetensors"],
        MEMBERS["provenance.json"],
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for index, seed in enumerate(seeds):
        (folder / f"seed-{index}").write_bytes(bytes([index]) + seed)


def test_one_input(data: bytes) -> None:
    """Give the input to the reader that its first byte names."""
    if len(data) < 4:
        return
    with contextlib.suppress(UserError):
        TARGETS[data[0] % len(TARGETS)](data[1:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--seeds"]:
        write_seeds(Path(sys.argv[2]))
        sys.exit()
    atheris.Setup(sys.argv, test_one_input)
    atheris.Fuzz()
