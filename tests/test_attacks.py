"""Everything that was thought of against a bundle: refused with exit code 5, and before ONNX Runtime sees a byte."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dzedge import bundle, cli, config, packing, robot
from dzedge import onnx_check as structure
from dzedge import session as session_module
from dzedge.container import HEADER, MAGIC, MANIFEST, MANIFEST_BYTES, SIGNATURE, Source
from dzedge.errors import BundleError
from dzedge.export import stub
from dzedge.minisign import SecretKey
from dzedge.policies import load_policy

TEST = SecretKey.decode(stub.TEST_SECRET.read_text(encoding="ascii"), "test")
MINE = SecretKey(id=bytes(range(8)), seed=bytes(range(32)))
FILE = "frame_encoder.fp32.onnx"
"""The graph that is attacked; every family has it."""


class Calls:
    """What ONNX Runtime and the walker of graphs were asked; no session and no optimized graph is left from before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, state: Path) -> None:
        session_module.forget()
        monkeypatch.setenv("XDG_STATE_HOME", str(state))
        self.sessions, self.graphs = [], []
        session, read = onnxruntime.InferenceSession, structure.read_model

        def make(*args, **options):
            self.sessions.append(args[0])
            return session(*args, **options)

        def walk(data: bytes, source: str) -> dict[str, int]:
            self.graphs.append(source)
            return read(data, source)

        monkeypatch.setattr(onnxruntime, "InferenceSession", make)
        monkeypatch.setattr(bundle, "read_model", walk)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Calls:
    return Calls(monkeypatch, tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stub.write(tmp_path_factory.mktemp("attacks") / "stub.dzp", stub.section("dual_vla"))


@pytest.fixture
def folder(tmp_path: Path, original: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "stub.dzp"))


def run(folder: Path) -> object:
    """As `dzedge run` does it, up to the policy that is ready to drive."""
    asked = robot.read(None, folder)
    return load_policy(asked, robot.verified_bundle(asked))


def exit_code(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dzedge", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def resign(folder: Path, change: Callable[[bytes], bytes], secret: SecretKey = TEST) -> None:
    """A manifest changed and signed well."""
    raw = change((folder / MANIFEST).read_bytes())
    (folder / MANIFEST).write_bytes(raw)
    (folder / SIGNATURE).write_bytes(secret.sign(raw, "attack"))


def with_graph(folder: Path, made: onnx.ModelProto | bytes) -> None:
    """The attacked graph replaced, its size and hash written into the manifest, and all of it signed well."""
    data = made if isinstance(made, bytes) else made.SerializeToString()
    (folder / FILE).write_bytes(data)

    def listed(raw: bytes) -> bytes:
        manifest = bundle.parse_manifest(raw, "attack")
        files = tuple(
            bundle._entry(folder / FILE, data, "graph") if entry.path == FILE else entry
            for entry in manifest.dzedge.files
        )
        section = msgspec.structs.replace(manifest.dzedge, files=files)
        return msgspec.json.encode(msgspec.structs.replace(manifest, dzedge=section))

    resign(folder, listed)


def renamed(folder: Path, name: str) -> None:
    """A well signed manifest that lists its graph under another name; what it points to exists."""
    (folder.parent / FILE).write_bytes((folder / FILE).read_bytes())
    resign(folder, lambda raw: raw.replace(FILE.encode(), name.encode()))


def model(folder: Path) -> onnx.ModelProto:
    return onnx.load_model_from_string((folder / FILE).read_bytes())


def external(folder: Path, location: str, make: Callable[[Path], object] = lambda folder: None) -> None:
    """The attacked graph with one weight in a file elsewhere, which is really there."""
    made = model(folder)
    weight = made.graph.initializer[0]
    (folder.parent / "outside").mkdir()
    for place in (folder.parent / "outside" / "w.bin", folder.parent / "w.bin"):
        place.write_bytes(weight.raw_data)
    make(folder)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location.format(root=folder.parent))
    with_graph(folder, made)


def changed(folder: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    made = model(folder)
    change(made)
    with_graph(folder, made)


def node(**asked: str) -> Callable[[onnx.ModelProto], object]:
    return lambda made: made.graph.node.append(helper.make_node("Run", ["image"], ["extra"], **asked))


def engine(made: onnx.ModelProto) -> None:
    made.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    made.graph.node.append(
        helper.make_node("EPContext", ["image"], ["extra"], domain="com.microsoft", ep_cache_context="engine.trt")
    )


def giant(made: onnx.ModelProto) -> None:
    shape = numpy_helper.from_array(np.array([10**12], np.int64), "giant")
    made.graph.initializer.append(shape)
    made.graph.node.append(helper.make_node("ConstantOfShape", ["giant"], ["extra"]))


def swap(folder: Path, make: Callable[[Path, Path], object], name: str = FILE) -> None:
    """A file of the bundle moved out, something else in its place."""
    outside = folder.parent / "outside.bin"
    shutil.move(folder / name, outside)
    make(folder / name, outside)


Attack = Callable[[Path], object]
SEVEN: dict[str, Attack] = {  # the external-data models of facts/craft, fact 1
    "absolute path": lambda f: external(f, "{root}/w.bin"),
    "parent path": lambda f: external(f, "../w.bin"),
    "symlink": lambda f: external(f, "w.bin", lambda f: (f / "w.bin").symlink_to(f.parent / "w.bin")),
    "symlinked folder": lambda f: external(f, "d/w.bin", lambda f: (f / "d").symlink_to(f.parent / "outside")),
    "hard link": lambda f: external(f, "w.bin", lambda f: os.link(f.parent / "w.bin", f / "w.bin")),
    "extra file": lambda f: external(f, "w.bin", lambda f: shutil.copy(f.parent / "w.bin", f / "w.bin")),
    "file of the bundle": lambda f: external(f, "text.fp32.onnx"),
}
SIGNED: dict[str, Attack] = {  # well signed, by a key that is trusted
    **{f"external data, {name}": attack for name, attack in SEVEN.items()},
    "custom domain, imported": lambda f: changed(
        f, lambda m: (m.opset_import.append(helper.make_opsetid("evil", 1)), node(domain="evil")(m))
    ),
    "custom domain, not imported": lambda f: changed(f, node(domain="evil")),
    "compiled engine": lambda f: changed(f, engine),
    "input of 1e12": lambda f: changed(
        f, lambda m: m.graph.input.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [10**12]))
    ),
    "output of 1e6 x 1e6": lambda f: changed(
        f, lambda m: m.graph.output.append(helper.make_tensor_value_info("big", TensorProto.FLOAT, [10**6, 10**6]))
    ),
    "weight of 1e12": lambda f: changed(f, lambda m: m.graph.initializer[0].dims.append(10**12)),
    "weight of -1": lambda f: changed(f, lambda m: m.graph.initializer[0].dims.append(-1)),
    "tensor of 1e12 made at run time": lambda f: changed(f, giant),
    "a function": lambda f: changed(f, lambda m: m.functions.add(name="f", domain="")),
    "not a graph": lambda f: with_graph(f, b"\x7fELF" + bytes(5000)),
    "an empty graph": lambda f: with_graph(f, b"\x0a"),
    "a second graph appended": lambda f: with_graph(f, (f / FILE).read_bytes() * 2),
    "newer operators": lambda f: changed(f, lambda m: setattr(m.opset_import[0], "version", 27)),
    "NaN": lambda f: resign(f, lambda raw: raw.replace(b'"version": 1', b'"version": NaN')),
    "infinity": lambda f: resign(f, lambda raw: raw.replace(b'"dt_ns": ', b'"dt_ns": 1e999, "x": ')),
    "huge integer": lambda f: resign(f, lambda raw: raw.replace(b'"horizon": 8', b'"horizon": ' + b"9" * 4000)),
    "integer past 64 bits": lambda f: resign(
        f, lambda raw: raw.replace(b'"horizon": 8', b'"horizon": 36893488147419103240')
    ),
    "key twice": lambda f: resign(f, lambda raw: raw.replace(b'"horizon": 8', b'"horizon": 8, "horizon": 8')),
    "unknown key": lambda f: resign(f, lambda raw: raw.replace(b'"horizon"', b'"plugin": "x.so", "horizon"')),
    "deep nesting": lambda f: resign(f, lambda raw: b"[" * 200_000),
    "file listed twice": lambda f: resign(f, lambda raw: raw.replace(b"text.fp32.onnx", FILE.encode())),
    "traversal": lambda f: renamed(f, "../" + FILE),
    "absolute name": lambda f: renamed(f, f"{f.parent}/{FILE}"),
    "name in a folder": lambda f: renamed(f, f"sub/{FILE}"),
    "the manifest as a file": lambda f: renamed(f, MANIFEST),
    "hidden name": lambda f: renamed(f, "." + FILE),
    "newer runtime": lambda f: resign(f, lambda raw: raw.replace(b'"min_runtime": "0', b'"min_runtime": "99')),
}  # fmt: skip
UNSIGNED: dict[str, Attack] = {  # without a key that is trusted
    "foreign key": lambda f: resign(f, bytes, MINE),
    "foreign key under a trusted id": lambda f: resign(f, bytes, SecretKey(id=TEST.id, seed=MINE.seed)),
    "no signature": lambda f: (f / SIGNATURE).unlink(),
    "empty signature": lambda f: (f / SIGNATURE).write_bytes(b""),
    "signature of something else": lambda f: (f / SIGNATURE).write_bytes(TEST.sign(b"else", "x")),
    "no manifest": lambda f: (f / MANIFEST).unlink(),
    "oversized manifest": lambda f: os.truncate(f / MANIFEST, MANIFEST_BYTES + 1),
    "endless manifest": lambda f: os.truncate(f / MANIFEST, 1 << 40),
    "oversized signature": lambda f: os.truncate(f / SIGNATURE, 1 << 30),
    **{f"{name} is a symlink": lambda f, name=name: swap(f, lambda at, to: at.symlink_to(to), name)
       for name in (MANIFEST, SIGNATURE, FILE)},
    **{f"{name} has two links": lambda f, name=name: swap(f, lambda at, to: os.link(to, at), name)
       for name in (MANIFEST, SIGNATURE, FILE)},
    **{f"{name} is a FIFO": lambda f, name=name: swap(f, lambda at, to: os.mkfifo(at), name)
       for name in (MANIFEST, SIGNATURE, FILE)},
    **{f"{name} is a folder": lambda f, name=name: swap(f, lambda at, to: at.mkdir(), name)
       for name in (MANIFEST, SIGNATURE, FILE)},
    "a device": lambda f: swap(f, lambda at, to: at.symlink_to("/dev/zero")),
    "an extra file": lambda f: (f / "extra.onnx").write_bytes(b"x"),
    "an extra hidden file": lambda f: (f / ".extra").write_bytes(b"x"),
    "an extra folder": lambda f: (f / "sub").mkdir(),
    "a secret key beside": lambda f: (f / "my.key").write_text(MINE.encode()),
    "a missing file": lambda f: (f / FILE).unlink(),
    "a flipped bit of a graph": lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:-1] + b"\xff"),
    "a longer file": lambda f: (f / FILE).write_bytes((f / FILE).read_bytes() + b"\0"),
    "an endless file": lambda f: os.truncate(f / FILE, 1 << 40),
    "files that changed places": lambda f: (
        shutil.move(f / FILE, f / "x"),
        shutil.move(f / "text.fp32.onnx", f / FILE),
        shutil.move(f / "x", f / "text.fp32.onnx"),
    ),
}  # fmt: skip


class TestFolders:
    def test_the_untouched_bundle_runs(self, folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        """Else what follows would prove nothing."""
        assert run(folder)
        assert len(calls.sessions) == len(calls.graphs) == 4
        assert exit_code(monkeypatch, "bundle", "verify", str(folder)) == 0

    @pytest.mark.parametrize("name", [*SIGNED, *UNSIGNED])
    def test_refused_before_onnx_runtime_sees_a_byte(
        self, folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        (SIGNED | UNSIGNED)[name](folder)
        with pytest.raises(BundleError):
            run(folder)
        for command in (("bundle", "verify"), ("bundle", "show"), ("run", "--lockstep", "--policy")):
            assert exit_code(monkeypatch, *command, str(folder)) == 5
        assert not calls.sessions

    @pytest.mark.parametrize("name", [name for name in UNSIGNED if re.search("signature|manifest|foreign", name)])
    def test_what_is_not_signed_is_not_even_walked(self, folder: Path, calls: Calls, name: str) -> None:
        UNSIGNED[name](folder)
        with pytest.raises(BundleError):
            run(folder)
        assert not calls.graphs

    def test_the_same_graphs_would_load_in_onnx_runtime(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The attacks are real: this ONNX Runtime takes external data of the bundle's own folder without a question."""
        SEVEN["extra file"](folder)
        monkeypatch.chdir(folder)
        assert onnxruntime.InferenceSession(FILE, providers=["CPUExecutionProvider"])


CHANGES: dict[str, Callable[[bytes], bytes]] = {  # of a container
    "a byte more": lambda data: data + b"\0",
    "a byte less": lambda data: data[:-1],
    "nothing": lambda data: b"",
    "magic alone": lambda data: MAGIC,
    "header alone": lambda data: data[: HEADER.size],
    "endless sizes": lambda data: HEADER.pack(MAGIC, 2**32 - 1, 2**32 - 1) + data[HEADER.size :],
    "sizes exchanged": lambda data: HEADER.pack(*HEADER.unpack(data[: HEADER.size])[::2], 281) + data[HEADER.size :],
    "a zip": lambda data: b"PK\3\4" + data[4:],
    "last byte flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    "two parts exchanged": lambda data: data[:-200] + data[-100:] + data[-200:-100],
    "two containers": lambda data: data + data,
}


class TestContainers:
    """The same, carried: unpacking makes no folder, running a container makes no session."""

    @pytest.fixture
    def file(self, folder: Path) -> Path:
        packing.contain(folder, folder.with_suffix(".dzb"), (), True)
        return folder.with_suffix(".dzb")

    def test_the_untouched_container_runs(self, file: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
        assert run(file) and len(calls.sessions) == 4
        for command in (("bundle", "verify"), ("bundle", "show")):
            assert exit_code(monkeypatch, *command, str(file)) == 0

    @pytest.mark.parametrize("name", CHANGES)
    def test_refused(self, file: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        before = sorted(os.listdir(file.parent))
        file.write_bytes(CHANGES[name](file.read_bytes()))
        for command in (("bundle", "verify"), ("bundle", "show"), ("run", "--lockstep", "--policy")):
            assert exit_code(monkeypatch, *command, str(file)) == 5
        assert exit_code(monkeypatch, "bundle", "unpack", str(file), "--out", str(file.parent / "out.dzp")) == 5
        assert not calls.sessions and sorted(os.listdir(file.parent)) == before

    @pytest.mark.parametrize("name", [name for name in SIGNED if "link" not in name and "extra" not in name])
    def test_a_well_signed_container_of_something_bad(
        self, folder: Path, calls: Calls, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        SIGNED[name](folder)
        raw, signature = (folder / MANIFEST).read_bytes(), (folder / SIGNATURE).read_bytes()
        names = [FILE, *sorted(path.name for path in folder.glob("*.onnx") if path.name != FILE)]
        parts = [HEADER.pack(MAGIC, len(signature), len(raw)), signature, raw]
        try:
            names = [entry["path"] for entry in json.loads(raw)["dzedge"]["files"]]
        except (ValueError, RecursionError):
            pass
        parts += [(folder / Path(name).name.lstrip(".")).read_bytes() for name in names if name != MANIFEST]
        file = folder.with_suffix(".dzb")
        file.write_bytes(b"".join(parts))
        assert exit_code(monkeypatch, "bundle", "unpack", str(file), "--out", str(file.parent / "out.dzp")) == 5
        assert exit_code(monkeypatch, "run", "--lockstep", "--policy", str(file)) == 5
        assert not calls.sessions and not (file.parent / "out.dzp").exists()


class InMemory(Source):
    """Manifest and signature as they are given; whoever asks for a file has come too far."""

    def __init__(self, manifest: bytes, signature: bytes) -> None:
        self.name, self.manifest, self.signature = "memory", manifest, signature

    def expect(self, files: Sequence[tuple[str, int]]) -> None:
        pass

    def read(self, file: str) -> bytes:
        raise AssertionError("a file was read")


class TestEveryByte:
    """Of manifest and signature: each byte changed in every bit of the signature and in one of the manifest, each
    length cut, a byte left out, doubled or put in."""

    @pytest.fixture
    def pair(self, original: Path) -> tuple[bytes, bytes]:
        return (original / MANIFEST).read_bytes(), (original / SIGNATURE).read_bytes()

    @pytest.fixture
    def count(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
        """How many of some (manifest, signature) are refused without a look into the manifest; all must be."""

        def parse(raw: bytes, source: str) -> bundle.Manifest:
            raise AssertionError("a manifest was parsed that is not signed")

        def refuse(tampered: Sequence[tuple[bytes, bytes]]) -> int:
            with monkeypatch.context() as patch:
                patch.setattr(bundle, "parse_manifest", parse)
                for manifest, signature in tampered:
                    with pytest.raises(BundleError):
                        bundle.verify(InMemory(manifest, signature), (), allow_test_key=True)
            return len(tampered)

        return refuse

    def test_untouched_it_verifies(self, pair: tuple[bytes, bytes]) -> None:
        assert bundle.verify(InMemory(*pair), (), allow_test_key=True)[0] == bundle.public_test_key()

    def test_every_bit_of_the_signature(self, pair: tuple[bytes, bytes], count: Callable[..., int]) -> None:
        raw, good = pair
        flips = [good[:i] + bytes([good[i] ^ 1 << bit]) + good[i + 1 :] for i in range(len(good)) for bit in range(8)]
        assert count([(raw, bad) for bad in flips]) == 8 * len(good)

    def test_every_byte_of_the_manifest(self, pair: tuple[bytes, bytes], count: Callable[..., int]) -> None:
        raw, good = pair
        flips = [raw[:i] + bytes([raw[i] ^ 1 << i % 8]) + raw[i + 1 :] for i in range(len(raw))]
        assert count([(bad, good) for bad in flips]) == len(raw) > 3000

    def test_every_length(self, pair: tuple[bytes, bytes], count: Callable[..., int]) -> None:
        raw, good = pair
        assert count([(raw[:i], good) for i in range(len(raw))]) == len(raw)
        assert count([(raw, good[:i]) for i in range(len(good))]) == len(good)

    def test_a_byte_left_out_or_put_in(self, pair: tuple[bytes, bytes], count: Callable[..., int]) -> None:
        raw, good = pair
        count([(raw, good[:i] + good[i + 1 :]) for i in range(len(good))])
        count([(raw, good[:i] + b"=" + good[i:]) for i in range(len(good) + 1)])
        count([(raw[:i] + b" " + raw[i:], good) for i in range(0, len(raw) + 1, 7)])


class TestKeys:
    def test_the_test_key_only_where_the_robot_file_allows_it(self, folder: Path, calls: Calls) -> None:
        asked = robot.read(None, folder)
        strict = msgspec.structs.replace(asked, policy=msgspec.structs.replace(asked.policy, allow_test_key=False))
        with pytest.raises(BundleError, match="trusted here: none"):
            robot.verified_bundle(strict)
        assert robot.verified_bundle(asked) and not calls.sessions

    def test_no_robot_file_with_a_real_arm_can_allow_it(self, tmp_path: Path) -> None:
        text = config.default_path().read_text().replace('port = "sim"', 'port = "/dev/ttyACM0"', 1)
        (tmp_path / "robot.toml").write_text(text)
        with pytest.raises(Exception, match="allow_test_key"):
            config.load(tmp_path / "robot.toml")


def test_a_session_is_made_of_bytes_that_were_hashed(folder: Path, calls: Calls) -> None:
    """Never of a path: what lies there may change, and ONNX Runtime would look for external data beside it."""
    run(folder)
    files = {path.read_bytes() for path in folder.glob("*.onnx")}
    assert calls.sessions and all(isinstance(given, bytes) and given in files for given in calls.sessions)
