"""Model signatures of PEFT folders: the real tool accepts ours, we accept its own, and nothing altered is accepted."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sealed_experts.cli.main import main
from sealed_experts.errors import UserError
from sealed_experts.packages import signed_folder
from sealed_experts.packages.errors import IncompatibleError, PackageError, SignatureError
from sealed_experts.packages.signed_folder import sign_folder, verify_folder
from tests.attacks import building

MODEL_SIGNING = Path(sys.executable).with_name("model_signing")  # of the extra model-signing


def key_files(folder: Path, *, name: str = "key", curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """Write a key pair; return the private and the public file."""
    private = ec.generate_private_key(curve or ec.SECP256R1())
    files = folder / f"{name}.pem", folder / f"{name}.pub"
    files[0].write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    files[0].chmod(0o600)
    files[1].write_bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return files


@pytest.fixture
def keys(tmp_path):
    return key_files(tmp_path)


@pytest.fixture
def folder(tmp_path):
    """A PEFT folder."""
    peft = tmp_path / "peft"
    peft.mkdir()
    (peft / "adapter_config.json").write_bytes(building.adapter_config())
    (peft / "adapter_model.safetensors").write_bytes(building.weights())
    (peft / "README.md").write_text("# An adapter\n")
    return peft


def model_signing(*arguments) -> subprocess.CompletedProcess:
    return subprocess.run([MODEL_SIGNING, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_the_real_command_line_accepts_our_signature_and_refuses_an_altered_folder(folder, keys):
    signature = sign_folder(folder, key=keys[0])
    command = ("verify", "key", folder, "--signature", signature, "--public_key", keys[1])
    done = model_signing(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "README.md").write_text("# Another card\n")
    assert model_signing(*command).returncode != 0


def test_a_signature_by_the_real_command_line_is_accepted_here(folder, keys, tmp_path):
    signature = tmp_path / "theirs.sig"
    done = model_signing("sign", "key", folder, "--private_key", keys[0], "--signature", signature)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(verify_folder(folder, key=keys[1], signature=signature).digests) == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_signing_and_verifying(folder, keys):
    path = sign_folder(folder, key=keys[0])
    assert path == folder.parent / "peft.sig"
    checked = verify_folder(folder, key=keys[1])
    assert checked.facts.adapter == building.run().adapter
    assert sorted(checked.digests) == sorted(os.listdir(folder))


def test_the_envelope_is_dsse_over_an_in_toto_statement(folder, keys):
    """The bytes are built here from the specifications: DSSE's PAE, in-toto's statement, ECDSA from the library."""
    import hashlib

    from cryptography.hazmat.primitives import hashes, serialization

    bundle = json.loads(sign_folder(folder, key=keys[0]).read_bytes())
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    public = serialization.load_pem_public_key(keys[1].read_bytes())
    signed = b"DSSEv1 28 application/vnd.in-toto+json " + str(len(payload)).encode() + b" " + payload
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed, ec.ECDSA(hashes.SHA256()))
    statement = json.loads(payload)
    digests = [hashlib.sha256((folder / name).read_bytes()) for name in sorted(os.listdir(folder))]
    assert [entry["digest"] for entry in statement["predicate"]["resources"]] == [d.hexdigest() for d in digests]
    root = hashlib.sha256(b"".join(digest.digest() for digest in digests)).hexdigest()
    assert statement["subject"] == [{"name": "peft", "digest": {"sha256": root}}]


def test_the_same_folder_and_key_give_the_same_signature(folder, keys, tmp_path):
    one = sign_folder(folder, key=keys[0], output=tmp_path / "one.sig").read_bytes()
    assert sign_folder(folder, key=keys[0], output=tmp_path / "two.sig").read_bytes() == one


def test_a_present_signature_is_not_replaced_and_none_lies_in_the_folder(folder, keys):
    sign_folder(folder, key=keys[0])
    with pytest.raises(UserError, match="exists"):
        sign_folder(folder, key=keys[0])
    with pytest.raises(UserError, match="is in the folder"):
        sign_folder(folder, key=keys[0], output=folder / "model.sig")


@pytest.mark.parametrize("name", ["README.md", "adapter_config.json", "adapter_model.safetensors"])
def test_every_byte_of_a_file_is_signed(folder, keys, name):
    sign_folder(folder, key=keys[0])
    content = bytearray((folder / name).read_bytes())
    for position in range(0, len(content), 7):
        content[position] ^= 1
        (folder / name).write_bytes(content)
        with pytest.raises(PackageError, match=f"member {name}: its SHA-256 is not"):
            verify_folder(folder, key=keys[1])
        content[position] ^= 1


def test_a_file_more_or_less_is_refused(folder, keys):
    sign_folder(folder, key=keys[0])
    (folder / "privacy_receipt.json").write_text("{}")
    with pytest.raises(PackageError, match=r"privacy_receipt\.json' is foreign: the signature does not list it"):
        verify_folder(folder, key=keys[1])
    (folder / "privacy_receipt.json").unlink()
    (folder / "README.md").unlink()
    with pytest.raises(PackageError, match=r"'README\.md' is missing"):
        verify_folder(folder, key=keys[1])


@pytest.mark.parametrize("name", ["adapter_model.bin", ".hidden", "optimizer.pt", "model.pkl", ".snakemake_timestamp"])
def test_foreign_files_are_neither_signed_nor_accepted(folder, keys, name):
    (folder / name).write_text("x")
    with pytest.raises(PackageError, match="is foreign"):
        sign_folder(folder, key=keys[0])
    (folder / name).unlink()
    sign_folder(folder, key=keys[0])
    (folder / name).write_text("x")
    with pytest.raises(PackageError, match="is foreign"):
        verify_folder(folder, key=keys[1])


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_plain_file_is_refused(folder, keys, kind):
    sign_folder(folder, key=keys[0])
    path = folder / "README.md"
    path.unlink()
    if kind == "link":
        path.symlink_to("/etc/hostname")
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(UserError, match=r"symbolic link|Is a directory|not a regular file"):
        verify_folder(folder, key=keys[1])


def test_another_key_is_refused(folder, keys, tmp_path):
    sign_folder(folder, key=keys[0])
    other = key_files(tmp_path, name="other")[1]
    with pytest.raises(SignatureError, match="not by the key"):
        verify_folder(folder, key=other)


def test_a_signed_folder_still_goes_through_the_linter(folder, keys):
    (folder / "adapter_config.json").write_bytes(building.adapter_config(auto_mapping={"base_model_class": "os"}))
    with pytest.raises(PackageError, match="auto_mapping"):
        sign_folder(folder, key=keys[0])
    members = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in members.items()}
    private = signed_folder.model_signature.read_private_key(keys[0])
    bundle = signed_folder.model_signature.sign_digests(digests, folder=folder.name, key=private)
    (folder.parent / "peft.sig").write_bytes(bundle)
    with pytest.raises(PackageError, match="auto_mapping"):
        verify_folder(folder, key=keys[1])


def _altered(folder, keys, change) -> Path:
    """Return a signature whose bundle or statement was changed; the statement is signed again."""
    from sealed_experts.packages import model_signature

    path = sign_folder(folder, key=keys[0])
    bundle = json.loads(path.read_bytes())
    envelope = bundle["dsseEnvelope"]
    statement = json.loads(base64.b64decode(envelope["payload"]))
    change(bundle, statement)
    payload = json.dumps(statement).encode()
    envelope["payload"] = base64.b64encode(payload).decode()
    kind = envelope["payloadType"]
    signed = f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload
    value = model_signature.read_private_key(keys[0]).sign(signed, ec.ECDSA(SHA256()))
    envelope["signatures"][0]["sig"] = base64.b64encode(value).decode()
    path.write_text(json.dumps(bundle))
    return path


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda bundle, statement: bundle.update(mediaType="text/plain"), IncompatibleError),
        (lambda bundle, statement: bundle["dsseEnvelope"].update(payloadType="text/plain"), IncompatibleError),
        (
            lambda bundle, statement: statement.update(predicateType="https://model_signing/Digests/v0.1"),
            IncompatibleError,
        ),
        (lambda bundle, statement: statement["predicate"]["serialization"].update(method="shards"), IncompatibleError),
        (
            lambda bundle, statement: statement["predicate"]["serialization"].update(allow_symlinks=True),
            IncompatibleError,
        ),
        (lambda bundle, statement: statement["predicate"]["resources"].pop(), PackageError),
        (lambda bundle, statement: statement["predicate"]["resources"].append({"name": []}), PackageError),
        (lambda bundle, statement: statement["predicate"]["resources"][0].update(algorithm="md5"), PackageError),
        (lambda bundle, statement: statement["predicate"]["resources"][0].update(digest="zz"), PackageError),
        (lambda bundle, statement: statement["subject"].append(statement["subject"][0]), PackageError),
        (lambda bundle, statement: statement.pop("subject"), PackageError),
    ],
)
def test_another_statement_is_refused_even_when_signed(folder, keys, change, kind):
    _altered(folder, keys, change)
    with pytest.raises(kind) as caught:
        verify_folder(folder, key=keys[1])
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)


def test_a_statement_of_only_some_files_is_refused(folder, keys):
    """Its subject matches its digests, but the folder has more files."""

    def fewer(_bundle, statement):
        from sealed_experts.packages.model_signature import root_digest

        del statement["predicate"]["resources"][0]
        digests = [entry["digest"] for entry in statement["predicate"]["resources"]]
        statement["subject"][0]["digest"]["sha256"] = root_digest(digests)

    _altered(folder, keys, fewer)
    with pytest.raises(PackageError, match=r"'README\.md' is foreign"):
        verify_folder(folder, key=keys[1])


def test_every_flip_in_the_signature_file_is_refused_or_changes_nothing_that_counts(folder, keys):
    path = sign_folder(folder, key=keys[0])
    whole = path.read_bytes()
    digests = verify_folder(folder, key=keys[1]).digests
    for position in range(0, len(whole), 3):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        try:
            assert verify_folder(folder, key=keys[1]).digests == digests
        except PackageError:
            continue


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"x"',
        b"\xff",
        b"[" * 50_000,
        b'{"dsseEnvelope": {"signatures": []}}',
        b"x" * (1 << 20),
    ],
)
def test_what_is_no_bundle_is_refused(folder, keys, content):
    (folder.parent / "peft.sig").write_bytes(content)
    with pytest.raises(PackageError, match=r"peft\.sig: it is not a Sigstore bundle"):
        verify_folder(folder, key=keys[1])


def test_keys_of_other_kinds_and_modes_are_refused(folder, keys, tmp_path):
    from sealed_experts.packages.keys.private_keys import create_key, key_path

    other = key_files(tmp_path, name="p384", curve=ec.SECP384R1())
    with pytest.raises(UserError, match="not an ECDSA P-256 key"):
        sign_folder(folder, key=other[0])
    create_key()
    with pytest.raises(UserError, match="not an ECDSA P-256 key"):
        sign_folder(folder, key=key_path())
    keys[0].chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        sign_folder(folder, key=keys[0])
    (tmp_path / "peft.sig").write_text("{}")
    with pytest.raises(UserError, match="not an ECDSA P-256 key"):
        verify_folder(folder, key=other[1])
    with pytest.raises(UserError, match="not a public key"):
        verify_folder(folder, key=folder / "README.md")


def test_the_commands(folder, keys, capsys):
    assert main(["verify", str(folder)]) == 2
    assert "--trust KEY.pub" in capsys.readouterr().err
    assert main(["verify", str(folder), "--trust", str(keys[1])]) == 1
    assert "`sealed-experts sign` makes one" in capsys.readouterr().err
    assert main(["sign", str(folder), "--key", str(keys[0])]) == 0
    assert main(["verify", str(folder), "--trust", str(keys[1])]) == 0
    assert "verified: 3 files" in capsys.readouterr().out
    assert main(["verify", str(folder), "--trust", str(keys[1]), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    (folder / "README.md").write_text("altered")
    assert main(["verify", str(folder), "--trust", str(keys[1])]) == 11
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "member README.md" in shown.err
