"""Coverage-guided fuzzing (atheris) of readers of `.expert` files and model signatures: see README.md beside this."""

import contextlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sealed_experts"]):
    from cryptography.hazmat.primitives.asymmetric import ec
    from tests.attacks import building, expert_building

    from sealed_experts.errors import UserError
    from sealed_experts.packages import model_signature
    from sealed_experts.packages.expert import plain_gzip
    from sealed_experts.packages.expert.container import open_expert_bytes

HONEST = expert_building.honest()
MEMBERS = expert_building.unpacked(HONEST)
ARCHIVE = plain_gzip.PlainGzipReader(expert_building.Memory(HONEST)).read(1 << 30)
TRUST = building.trust()
KEY = ec.derive_private_key(7, ec.SECP256R1())
DIGESTS = {"adapter_model.safetensors": "0" * 64}
BUNDLE = model_signature.sign_digests(DIGESTS, folder="peft", key=KEY)


def whole_file(data: bytes) -> None:
    """The file itself."""
    open_expert_bytes(data, trust=TRUST)


def archive(data: bytes) -> None:
    """The tar layer in a sound gzip: an honest one with a stretch replaced; the first two bytes say where."""
    place = int.from_bytes(data[:2], "big") % len(ARCHIVE)
    open_expert_bytes(
        expert_building.zipped(ARCHIVE[:place] + data[2:] + ARCHIVE[place + len(data) - 2 :]), trust=TRUST
    )


def member(data: bytes) -> None:
    """A member in a sound archive, not signed."""
    names = sorted(MEMBERS)
    open_expert_bytes(expert_building.packed({**MEMBERS, names[data[0] % len(names)]: data[1:]}), trust=TRUST)


def signed_member(data: bytes) -> None:
    """A member in a sound archive under a good signature."""
    names = sorted(MEMBERS.keys() - {"manifest.json", "signature.sig"})
    open_expert_bytes(expert_building.signed({**MEMBERS, names[data[0] % len(names)]: data[1:]}), trust=TRUST)


def bundle(data: bytes) -> None:
    """A model signature's file."""
    model_signature.signed_digests(data, key=KEY.public_key())


def statement(data: bytes) -> None:
    """A model signature's statement under a good signature."""
    model_signature.listed_digests(data)


TARGETS = (whole_file, archive, member, signed_member, bundle, statement)


def write_seeds(folder: Path) -> None:
    """Write inputs that each reader accepts, or nearly, for the fuzzer to start from."""
    payload = model_signature.canonical_json(model_signature.statement(DIGESTS, folder="peft")).encode()
    seeds = [HONEST, b"\x00\x00" + ARCHIVE[:512], b"\x04" + MEMBERS["manifest.json"], b"\x00# card", BUNDLE, payload]
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
