"""`dzedge bundle ...` as a person or a script calls it: exit codes, one JSON document, files in their places."""

import json
import os
import shutil
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dzedge import bundle, cli, golden, packing
from dzedge.bundle import open_bundle
from dzedge.container import MANIFEST, SIGNATURE
from dzedge.engine import Machine
from dzedge.export import stub
from dzedge.types import ActionPrefix

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`call("verify", "x.dzp")` -> (exit code, stdout, stderr), in a folder with a test-signed stub.dzp and a key."""
    stub.write(tmp_path / "stub.dzp", stub.section("dual_vla"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DZEDGE_TRACEBACK", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "bundle", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    assert run("keygen", "--out", "mine")[0] == 0
    return run


def document(answer: tuple[int, str, str]) -> dict:
    code, out, _ = answer
    (line,) = out.splitlines()
    assert code == json.loads(line).get("exit_code", 0)
    return json.loads(line)


class TestKeygen:
    def test_says_where_the_halves_lie(self, call: Call) -> None:
        told = document(call("keygen", "--out", "other", "--json"))
        assert (told["secret_key"], told["public_key"]) == ("other.key", "other.pub") and len(told["key"]) == 16
        assert stat.S_IMODE(os.stat("other.key").st_mode) == 0o600
        assert told["key"] in Path("other.pub").read_text()

    def test_never_overwrites(self, call: Call) -> None:
        before = Path("mine.key").read_bytes()
        code, out, err = call("keygen", "--out", "mine")
        assert (code, out) == (2, "") and "mine.key: cannot be made: File exists" in err
        assert Path("mine.key").read_bytes() == before

    def test_prints_no_secret(self, call: Call) -> None:
        told = "".join(call("keygen", "--out", "other")[1:])
        assert Path("other.key").read_text().splitlines()[1][:60] not in told


class TestGolden:
    """`verify --golden`: what is compared, and how, is tests/test_golden.py's; here whether it is asked and told."""

    def with_vector(self, off: float) -> None:
        opened = open_bundle("stub.dzp", allow_test_key=True)
        section = opened.manifest.dzedge
        asked = golden.Asked(stub.observation(3), ActionPrefix(np.zeros((0, stub.J))), section.samplers[0], 0, 1)
        chunk = golden.decide(opened, asked, Machine.detect(1))
        answer = golden.Answer(chunk.positions + off, chunk.imagined, 1e-4)
        Path("stub.dzp", golden.FILE).write_bytes(golden.encoded(asked, {golden.PLAIN: answer}))
        bundle.pack("stub.dzp", section, packing.load_secret(stub.TEST_SECRET), "x", "stub")

    def test_says_whether_it_decides_alike_here(self, call: Call) -> None:
        self.with_vector(0.0)
        code, out, _ = call("verify", "stub.dzp", "--golden")
        assert code == 0 and "golden vector (fp32): within" in out
        found = json.loads(call("verify", "stub.dzp", "--golden", "--json")[1])
        assert found["golden"]["ok"] is True and found["model"] == "stub"

    def test_another_decision_is_exit_code_1(self, call: Call) -> None:
        self.with_vector(0.01)
        code, out, _ = call("verify", "stub.dzp", "--golden")
        assert code == 1 and "joint shoulder_pan at step 0 is 0.01 rad off" in out
        code, out, _ = call("verify", "stub.dzp", "--golden", "--json")
        assert code == 1 and json.loads(out)["golden"]["ok"] is False
        assert call("verify", "stub.dzp")[0] == 0  # as signed it is

    def test_a_bundle_without_a_vector(self, call: Call) -> None:
        code, out, err = call("verify", "stub.dzp", "--golden")
        assert (code, out) == (5, "") and "no golden.safetensors" in err


class TestPackSignUnpack:
    def test_from_files_to_a_running_container(self, call: Call) -> None:
        """The whole way of somebody who has graphs and a draft."""
        shutil.move(f"stub.dzp/{MANIFEST}", "draft.json")
        os.unlink(f"stub.dzp/{SIGNATURE}")
        asked = ("stub.dzp", "--key", "mine.key", "--section", "draft.json", "--version", "5", "--container")
        packed = document(call("pack", *asked, "--json"))
        assert (packed["model"], packed["version"], packed["files"]) == ("stub", 5, 4)
        assert sorted(os.listdir()) == ["draft.json", "mine.key", "mine.pub", "stub.dzb", "stub.dzp"]
        assert call("verify", "stub.dzb")[0] == call("verify", "stub.dzp")[0] == 5
        assert document(call("verify", "stub.dzb", "--key", "mine.pub", "--json")) == packed
        assert document(call("unpack", "stub.dzb", "--out", "again.dzp", "--key", "mine.pub", "--json")) == packed
        shown = document(call("show", "stub.dzb", "--key", "mine.pub", "--json"))
        assert shown["manifest"]["dzedge"]["version"] == 5
        assert {name: Path("again.dzp", name).read_bytes() for name in os.listdir("again.dzp")} == {
            name: Path("stub.dzp", name).read_bytes() for name in os.listdir("stub.dzp")
        }

    def test_a_signed_folder_is_put_into_a_container_as_it_is(self, call: Call) -> None:
        before = Path("stub.dzp", MANIFEST).read_bytes()
        assert call("pack", "stub.dzp", "--container")[0] == 0
        assert Path("stub.dzp", MANIFEST).read_bytes() == before
        first = Path("stub.dzb").read_bytes()
        assert call("pack", "stub.dzp/", "--container")[0] == 0 and Path("stub.dzb").read_bytes() == first
        assert call("verify", "stub.dzb")[0] == 0
        call("sign", "stub.dzp", "--key", "mine.key")
        assert call("pack", "stub.dzp", "--container")[0] == 5
        assert call("pack", "stub.dzp", "--container", "--trusted", "mine.pub")[0] == 0

    def test_signing_again(self, call: Call) -> None:
        code, out, _ = call("sign", "stub.dzp", "--key", "mine.key")
        assert code == 0 and "signed stub.dzp" in out and "test key" not in out
        assert call("verify", "stub.dzp")[0] == 5 and call("verify", "stub.dzp", "--key", "mine.pub")[0] == 0
        Path("stub.dzp", "notes.md").write_text("new")
        code, _, err = call("sign", "stub.dzp", "--key", "mine.key")
        assert code == 5 and "pack the bundle again" in err

    def test_a_secret_key_never_goes_in(self, call: Call) -> None:
        shutil.copy("mine.key", "stub.dzp/notes.md")
        code, _, err = call("pack", "stub.dzp", "--key", "mine.key")
        assert code == 5 and "must not travel" in err

    def test_tables_for_people(self, call: Call) -> None:
        code, out, _ = call("show", "stub.dzp")
        assert code == 0 and "test key" in out and "frame_encoder.fp32.onnx" in out
        assert any(line.startswith("manifest_sha256: ") and len(line) == 81 for line in out.splitlines())

    @pytest.mark.parametrize(
        ("arguments", "wanted", "words"),
        [
            (("pack", "absent.dzp", "--key", "mine.key"), 2, "must be a folder"),
            (("pack", "stub.dzp"), 2, "--key is missing"),
            (("pack", "stub.dzp", "--container", "--version", "3"), 2, "--key is missing"),
            (("pack", "stub.dzp", "--key", "absent.key"), 2, "cannot read the secret key"),
            (("pack", "stub.dzp", "--key", "mine.pub"), 5, "not a minisign secret key"),
            (("pack", "stub.dzp", "--key", "mine.key", "--section", "absent.json"), 2, "name one with --section"),
            (("pack", "stub.dzp", "--key", "mine.key", "--section", "mine.pub"), 2, "no draft of a manifest"),
            (("sign", "stub.dzp"), 2, "--key"),
            (("sign", "mine.pub", "--key", "mine.key"), 2, "must be a folder"),
            (("unpack", "absent.dzb", "--out", "x.dzp"), 5, "cannot open the bundle"),
            (("unpack", "mine.pub", "--out", "x.dzp"), 5, "not a bundle"),
            (("unpack", "stub.dzp", "--out", "stub.dzp"), 2, "exists; choose another --out"),
            (("unpack", "stub.dzp"), 2, "--out"),
            (("verify", "stub.dzp", "--key", "absent.pub"), 5, "cannot read the public key"),
            (("keygen",), 2, "--out"),
            (("keygen", "--out", "stub.dzp/mine"), 2, "lies in a bundle"),
        ],
    )
    def test_exit_code_and_sentence(self, call: Call, arguments: tuple[str, ...], wanted: int, words: str) -> None:
        code, out, err = call(*arguments)
        assert (code, out) == (wanted, "") and words in err and "Traceback" not in err
        if wanted == 5:
            assert document(call(*arguments, "--json"))["exit_code"] == 5

    @pytest.mark.parametrize("command", ["keygen", "pack", "sign", "unpack", "verify", "show"])
    def test_help(self, call: Call, command: str) -> None:
        code, out, _ = call(command, "--help")
        assert code == 0 and "--json" in out
