"""Known instructions: from the bundle, from this machine, or not at all."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from dzedge import prompts
from dzedge.bundle import Bundle, open_bundle
from dzedge.clock import NS
from dzedge.engine import Machine
from dzedge.errors import BundleError, PolicyError, UsageError
from dzedge.export import prompts as writer
from dzedge.export import stub
from dzedge.manifest import PROMPTS
from dzedge.policies import FAMILIES, BundledPolicy, text
from dzedge.policies.text import check_instruction
from dzedge.prompts import KeptPrompts, Prompts, encoded, key_of, words_of
from dzedge.types import ActionPrefix

NOTHING = ActionPrefix(np.zeros((0, stub.J)))
KNOWN = ("Reach the red cube!", "press the blue cube", "push the green cube left", "press the blue cube.")
SAID = {"text": np.ones((1, 1, 2), np.float32), "key_text": np.zeros((1, 1, 1, 3), np.float32)}


def bundle(folder: Path, family: str = "wam", with_text: bool = True, instructions: tuple[str, ...] = KNOWN) -> Bundle:
    """A stub that brings prompts along, with its text graph or without."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    graph = folder.with_suffix(".onnx")
    graph.write_bytes(stub.model("text", 0.0, family))
    if not instructions:
        return made_of(folder, family, with_text, None)
    assert writer.write(folder.parent, graph, instructions, stub.W, stub.VOCABULARY) == 3
    return made_of(folder, family, with_text, (folder.parent / PROMPTS).read_bytes())


def made_of(folder: Path, family: str, with_text: bool, known: bytes | None) -> Bundle:
    section = stub.section(family)
    graphs = {name: files for name, files in section.graphs.items() if with_text or name != "text"}
    section = msgspec.structs.replace(section, graphs=graphs)
    stub.write(folder, section, more={} if known is None else {PROMPTS: known})
    return open_bundle(folder, allow_test_key=True)


def policy(opened: Bundle, machine: Machine | None = None) -> BundledPolicy:
    family = FAMILIES[opened.manifest.dzedge.family]
    return family(opened, machine or Machine("cpu", "avx2", 1), camera=(120, 160), seed=5)


def chunk(made: BundledPolicy, instruction: str) -> bytes:
    made.reset(instruction)
    return made.infer(stub.observation(0, 3), NOTHING, 0).positions.tobytes()


class TestKeys:
    def test_what_is_said_alike_has_one_key(self) -> None:
        assert key_of(words_of("Reach  the RED cube!")) == key_of(["reach", "the", "red", "cube"])
        assert key_of(words_of("reach the red")) != key_of(words_of("reach the red cube"))

    def test_is_sha_256_of_the_words(self) -> None:
        assert key_of([]) == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


class TestPrompts:
    def test_what_is_written_is_found(self) -> None:
        known = Prompts(encoded([(["go"], SAID), (["stop", "now"], SAID)]), "here")
        assert len(known) == 2
        assert known.find(["stay"]) is None
        found = known.find(["stop", "now"])
        assert found is not None
        assert known.shapes == {name: array.shape for name, array in SAID.items()}
        np.testing.assert_array_equal(found["text"], SAID["text"])

    def test_the_nearest_are_named_first(self) -> None:
        known = Prompts(encoded([(words_of(one), SAID) for one in KNOWN]), "here")
        assert known.nearest(["press", "the", "red", "cube"])[0] == "press the blue cube"
        assert len(known.nearest(["eight"])) == 3

    @pytest.mark.parametrize(
        "made",
        [
            [],
            [(["go"], {})],
            [(["go"], SAID), (["stop"], {"text": SAID["text"]})],
            [(["go"], SAID), (["stop"], {**SAID, "text": np.ones((1, 1, 3), np.float32)})],
            [(["go"], {"text": np.ones(2)})],
        ],
    )
    def test_files_that_do_not_hang_together(self, made: list[tuple[list[str], dict[str, np.ndarray]]]) -> None:
        with pytest.raises(BundleError, match="here: "):
            Prompts(encoded(made), "here")


class TestBundle:
    @pytest.mark.parametrize("family", stub.FAMILIES)
    def test_without_its_text_graph_it_says_the_same(self, tmp_path: Path, family: str) -> None:
        whole = policy(bundle(tmp_path / "a" / "stub.dzp", family, instructions=()))
        small = policy(bundle(tmp_path / "b" / "stub.dzp", family, with_text=False))
        assert small.text.graph is None
        for instruction in KNOWN:
            assert chunk(small, instruction) == chunk(whole, instruction)
        assert chunk(small, KNOWN[0]) != chunk(small, KNOWN[1])

    def test_a_known_instruction_runs_no_graph_an_unknown_one_does(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = policy(bundle(tmp_path / "stub.dzp"))
        runs: list[int] = []
        run = made.text.graph.run
        monkeypatch.setattr(made.text.graph, "run", lambda: runs.append(1) or run())
        other = policy(bundle(tmp_path / "b" / "stub.dzp", instructions=()))
        assert chunk(made, "press the blue cube") == chunk(other, "press the blue cube")
        assert runs == []
        assert chunk(made, "press the red cube") == chunk(other, "press the red cube")
        assert runs == [1]

    def test_an_unknown_instruction_names_the_nearest_and_leaves_the_old_task(self, tmp_path: Path) -> None:
        opened = bundle(tmp_path / "stub.dzp", with_text=False)
        made = policy(opened)
        before = chunk(made, KNOWN[0])
        for refuse in (made.reset, lambda asked: check_instruction(opened, asked)):
            with pytest.raises(PolicyError, match=r"'press the red cube': .*knows 3 .*nearest: 'press the blue cube'"):
                refuse("press the red cube")
            with pytest.raises(PolicyError, match="unknown word 'unicorn'"):
                refuse("press the unicorn")
        check_instruction(opened, KNOWN[1])
        assert made.infer(stub.observation(0, 3), NOTHING, 0).positions.tobytes() == before

    def test_one_of_both_must_be_there(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"needs dzedge\.graphs\.text or a file prompts\.safetensors"):
            bundle(tmp_path / "stub.dzp", with_text=False, instructions=())

    @pytest.mark.parametrize("with_text", [True, False])
    def test_prompts_of_another_model(self, tmp_path: Path, with_text: bool) -> None:
        opened = made_of(tmp_path / "stub.dzp", "wam", with_text, encoded([(["go"], SAID)]))
        with pytest.raises(BundleError, match=r"prompts.safetensors: has arrays .*; export the bundle again"):
            policy(opened)

    @pytest.mark.parametrize(("asked", "words"), [([], "no instruction to keep"), (["juggle"], "'juggle'")])
    def test_nothing_to_write(self, tmp_path: Path, asked: list[str], words: str) -> None:
        (tmp_path / "text.onnx").write_bytes(stub.model("text"))
        with pytest.raises(UsageError, match=words):
            writer.write(tmp_path, tmp_path / "text.onnx", asked, stub.W, stub.VOCABULARY)


class TestKept:
    """Instructions that took long, on this machine."""

    KEEPS = Machine("cpu", "avx2", 1, cache=True)

    @pytest.fixture(autouse=True)
    def at_home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "state"))
        self.folder = tmp_path / "state" / prompts.FOLDER

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("*") if path.name != "secret")

    @pytest.fixture
    def slow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every look at the clock is a second later than the one before."""
        now = iter(range(NS, 10**6 * NS, NS))
        monkeypatch.setattr(text.MonotonicClock, "now_ns", lambda self: next(now))

    def test_what_took_long_is_not_computed_again(
        self, tmp_path: Path, slow: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = bundle(tmp_path / "stub.dzp", instructions=())
        first = chunk(policy(opened, self.KEEPS), "press the red cube")
        [file] = self.files()
        assert self.folder.stat().st_mode & 0o777 == 0o700
        assert file.stat().st_mode & 0o777 == 0o600
        again = policy(opened, self.KEEPS)
        monkeypatch.setattr(again.text.graph, "run", lambda: pytest.fail("computed again"))
        assert chunk(again, "press the red cube") == first

    def test_a_damaged_file_is_made_again(self, tmp_path: Path, slow: None) -> None:
        opened = bundle(tmp_path / "stub.dzp", instructions=())
        first = chunk(policy(opened, self.KEEPS), "press the red cube")
        [file] = self.files()
        good = file.read_bytes()
        file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        assert chunk(policy(opened, self.KEEPS), "press the red cube") == first
        assert self.files() == [file]
        assert file.read_bytes() == good

    def test_what_is_quick_or_not_to_be_kept_is_not(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        opened = bundle(tmp_path / "stub.dzp", instructions=())
        monkeypatch.setattr(text.MonotonicClock, "now_ns", lambda self: 0)
        chunk(policy(opened, self.KEEPS), "press the red cube")
        monkeypatch.setattr(text, "LONG_NS", -1)
        chunk(policy(opened), "press the red cube")
        assert self.files() == []

    def test_of_another_bundle_it_is_not_taken(self) -> None:
        KeptPrompts("a").keep(["go"], SAID)
        shapes = {name: array.shape for name, array in SAID.items()}
        found = KeptPrompts("a").find(["go"], shapes)
        assert found is not None
        np.testing.assert_array_equal(found["text"], SAID["text"])
        assert KeptPrompts("b").find(["go"], shapes) is None
        assert KeptPrompts("a").find(["stop"], shapes) is None
        assert KeptPrompts("a").find(["go"], {"text": (1,)}) is None

    def test_a_folder_of_others_is_done_without(self, tmp_path: Path, slow: None) -> None:
        self.folder.mkdir(parents=True, mode=0o777)
        self.folder.chmod(0o777)
        chunk(policy(bundle(tmp_path / "stub.dzp", instructions=()), self.KEEPS), "press the red cube")
        assert self.files() == []
