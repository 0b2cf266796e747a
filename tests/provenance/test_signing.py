"""`rankwise sign` and `rankwise verify`: what changed is named, and nothing is verified without the signer's key."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from kit.command import done, printed, rankwise

pytest.importorskip("OpenSSL")  # of the extra `sign`
model_signing: Any = pytest.importorskip("model_signing")
PEM, SECRET = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def make_key(path: Path, password: bytes | None = None, kind: str = "ec") -> Path:
    """A private key that only its owner may read, and beside it the public one."""
    key = ec.generate_private_key(ec.SECP256R1()) if kind == "ec" else rsa.generate_private_key(65537, 2048)
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(PEM, SECRET, how))
    path.chmod(0o600)
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    path.with_suffix(".pub").write_bytes(public)
    return path


@pytest.fixture
def home(library, tmp_path, monkeypatch):
    """An export of a run, signed with `key`; another key `other`."""
    monkeypatch.chdir(library.lay_out(tmp_path / "home", "lora"))
    for name in ("key", "other"):
        make_key(Path(name))
    done("export", "lora", "--to", "out")
    done("sign", "out", "--key", "key")
    return Path.cwd()


def test_only_a_key_verifies(home):
    without = rankwise("verify", "out")
    assert without.exit_code == 0 and "unchanged, signer unknown" in without.stdout and "verified" not in without.stdout
    assert printed("verify", "out")["status"] == "unchanged, signer unknown"
    assert printed("verify", "out", "--key", "key.pub")["status"] == "verified"
    assert printed("verify", "out")["not_compared"] == ["the base model tiny-llama (--base-model)", "the rows (--data)"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ("adapter_model.safetensors", "adapter_config.json", "training.json", "data_report.json", "base_model.json",
         "tokenizer.json", "chat_template.jinja", "README.md")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_changed_or_missing_file_is_named(home, name):
    for how, change in (("changed", flip), ("missing", Path.unlink)):
        change(home / "out" / name)
        for key in ((), ("--key", "key.pub")):
            result = rankwise("verify", "out", "--json", *key)
            found = json.loads(result.stdout)
            assert result.exit_code == 2 and found["status"] == "changed" and found[how] == [name]
        assert name in rankwise("verify", "out").stdout


def test_what_was_added_is_named_whatever_it_is(home):
    (home / "out" / ".hidden").write_text("x")
    (home / "out" / "more").mkdir()
    (home / "out" / "more" / "code.py").write_text("x")
    (home / "out" / "linked").symlink_to(home / "tiny-llama")
    os.mkfifo(home / "out" / "pipe")
    added = json.loads(rankwise("verify", "out", "--json").stdout)["added"]
    assert added == [".hidden", "linked", "more/code.py", "pipe"]
    for name in ("pipe", "linked"):
        refused = rankwise("sign", "out", "--key", "key")
        assert refused.exit_code == 2 and "cannot be signed" in refused.stderr and name in refused.stderr
        (home / "out" / name).unlink()
    done("sign", "out", "--key", "key")
    assert printed("verify", "out", "--key", "key.pub")["status"] == "verified"


def test_base_and_rows_are_compared_with_what_was_signed(home):
    named = ("--key", "key.pub", "--base-model", "tiny-llama", "--data", "rows.jsonl")
    assert printed("verify", "out", *named)["not_compared"] == []
    flip(home / "tiny-llama" / "model.safetensors")
    rows = (home / "rows.jsonl").read_text().splitlines(keepends=True)
    (home / "rows.jsonl").write_text("".join([*rows[:2], rows[2].replace("town", "city"), *rows[3:]]))
    base, row = json.loads(rankwise("verify", "out", *named, "--json").stdout)["elsewhere"]
    assert "different weights" in base and row == "rows.jsonl:3 was changed"


def test_another_key_and_no_signature_are_refused(home):
    other = rankwise("verify", "out", "--key", "other.pub")
    assert other.exit_code == 2 and "not made with the private key that belongs to other.pub" in other.stderr
    (home / "out" / "model.sig").unlink()
    for key in ((), ("--key", "key.pub")):
        unsigned = rankwise("verify", "out", *key)
        assert unsigned.exit_code == 2 and unsigned.stderr.count("\n") == 1 and "no signature" in unsigned.stderr


def test_a_signature_of_something_else_is_refused(home):
    done("train", "--model", "tiny-llama", "--data", "rows.jsonl", "--run", "later", "--steps", "1", "--set",
         "model.dtype=float32", "--quiet")  # fmt: skip
    done("export", "later", "--to", "out-later")
    shutil.copy("out/model.sig", "out-later/model.sig")
    for key in ((), ("--key", "key.pub")):
        replayed = rankwise("verify", "out-later", *key)
        assert replayed.exit_code == 2 and "belongs to another folder" in replayed.stderr, replayed.output


def test_a_forged_signature_is_refused(home):
    """What it says of a file is changed with the file: the hashes agree, and the signature does not."""
    flip(home / "out" / "adapter_model.safetensors")
    bundle = json.loads((home / "out" / "model.sig").read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    found = rankwise("verify", "out", "--json")
    assert json.loads(found.stdout)["changed"] == ["adapter_model.safetensors"]
    for one in statement["predicate"]["resources"]:
        one["digest"] = hashlib.sha256((home / "out" / one["name"]).read_bytes()).hexdigest()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    (home / "out" / "model.sig").write_text(json.dumps(bundle))
    assert printed("verify", "out")["status"] == "unchanged, signer unknown"
    forged = rankwise("verify", "out", "--key", "key.pub")
    assert forged.exit_code == 2 and "not made with" in forged.stderr


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff", b'{"dsseEnvelope": {"payload": "e30="}}'])
def test_a_damaged_signature_is_one_sentence(home, content):
    (home / "out" / "model.sig").write_bytes(content)
    for key in ((), ("--key", "key.pub")):
        damaged = rankwise("verify", "out", *key)
        assert damaged.exit_code == 2 and damaged.stderr.count("\n") == 1 and "damaged" in damaged.stderr


def test_the_tool_of_the_format_accepts_ours_and_ours_its(home):
    config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key="key.pub")
    config.verify(home / "out", home / "out" / "model.sig")
    ignored = model_signing.hashing.Config().set_ignored_paths(paths=["model.sig"])
    signer = model_signing.signing.Config().use_elliptic_key_signer(private_key=home / "other")
    signer.set_hashing_config(ignored).sign(home / "out", home / "out" / "model.sig")
    assert printed("verify", "out", "--key", "other.pub")["status"] == "verified"
    assert "leaves out" not in str(printed("verify", "out")["not_compared"])
    ignored.set_ignored_paths(paths=["model.sig", "later"])
    (home / "out" / "later").mkdir()
    signer.set_hashing_config(ignored).sign(home / "out", home / "out" / "model.sig")
    (home / "out" / "later" / "more.json").write_text("{}")
    assert "later, which the signature leaves out" in printed("verify", "out", "--key", "other.pub")["not_compared"]


def test_a_run_is_signed_where_its_result_lies_and_stays_whole(home):
    done("sign", "lora", "--key", "key")
    assert printed("verify", "lora", "--key", "key.pub", "--data", "rows.jsonl")["not_compared"] == []
    assert printed("runs", "verify", "lora")["whole"]
    assert rankwise("inspect", "lora").stderr == ""
    flip(home / "runs" / "lora" / "adapter" / "README.md")
    flip(home / "runs" / "lora" / "adapter" / "tokenizer.json")
    found = json.loads(rankwise("verify", "lora", "--key", "key.pub", "--json").stdout)
    assert found["changed"] == ["README.md", "tokenizer.json"]
    assert "was changed after training" in rankwise("sign", "lora", "--key", "key").stderr


def test_a_key_that_is_no_secret_or_no_key_is_refused(home, monkeypatch):
    Path("open").write_bytes(Path("key").read_bytes())
    Path("open").chmod(0o640)
    shutil.copy("key", "out/key")
    make_key(Path("rsa"), kind="rsa")
    make_key(Path("locked"), b"a password")
    Path("text").write_text("no key")
    Path("text").chmod(0o600)
    refusals = {"open": "chmod 600", "out/key": "lies in the folder", "rsa": "elliptic curve", "text": "elliptic curve",
                "locked": "RANKWISE_KEY_PASSWORD", "nowhere": "nowhere"}  # fmt: skip
    before = Path("out/model.sig").read_bytes()
    for name, why in refusals.items():
        refused = rankwise("sign", "out", "--key", name)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and why in refused.stderr, refused.output
    assert Path("out/model.sig").read_bytes() == before
    assert "public key" in rankwise("verify", "out", "--key", "key").stderr
    Path("out/key").unlink()
    monkeypatch.setenv("RANKWISE_KEY_PASSWORD", "a password")
    done("sign", "out", "--key", "locked")
    assert printed("verify", "out", "--key", "locked.pub")["status"] == "verified"
    monkeypatch.setenv("RANKWISE_KEY_PASSWORD", "another")
    assert "password" in rankwise("sign", "out", "--key", "locked").stderr
    assert not any(b"PRIVATE" in path.read_bytes() for path in Path("out").rglob("*") if path.is_file())


def test_without_the_extra_one_sentence_says_what_to_install(home, monkeypatch):
    monkeypatch.setattr("rankwise.system.extras.find_spec", lambda name: None)
    for words in (("sign", "out", "--key", "key"), ("verify", "out", "--key", "key.pub")):
        refused = rankwise(*words)
        assert refused.exit_code == 2 and "rankwise[sign]" in refused.stderr and refused.stderr.count("\n") == 1
    assert printed("verify", "out")["status"] == "unchanged, signer unknown"
