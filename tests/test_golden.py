"""Golden vectors and sampler errors, on bundles that know nothing."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from dzedge import golden, tensors
from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Machine
from dzedge.errors import BundleError
from dzedge.export import golden as writer
from dzedge.export import sampler_errors, stub
from dzedge.export.decisions import Decision
from dzedge.export.parity import ParityError
from dzedge.golden import FILE, Answer, Asked, Golden
from dzedge.types import ActionChunk, ActionPrefix

CPU = Machine("cpu", "avx2", 1)
PREFIX = ActionPrefix(stub.STATE + np.array([[0.01], [0.02]]))
ASKED = Asked(stub.observation(0, 3), PREFIX, "video_first(2,2)", 5, 3)
DECISIONS = [
    Decision(stub.observation(3), ActionPrefix(np.zeros((0, stub.J))), True),
    Decision(stub.observation(0, 3), PREFIX, True),
    Decision(stub.observation(1, 4), PREFIX, False),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(stub.write(tmp_path_factory.mktemp("plain") / "stub.dzp"), allow_test_key=True)


@pytest.fixture(scope="module")
def chunk(plain: Bundle) -> ActionChunk:
    return golden.decide(plain, ASKED, CPU)


def bundle(folder: Path, answers: dict[str, Answer], section: object = None) -> Bundle:
    more = {FILE: golden.encoded(ASKED, answers)}
    return open_bundle(stub.write(folder, section, more=more), allow_test_key=True)  # type: ignore[arg-type]


class TestCheck:
    def test_what_it_gave_it_gives(self, tmp_path: Path, chunk: ActionChunk) -> None:
        opened = bundle(tmp_path / "stub.dzp", {"fp32": Answer(chunk.positions, chunk.imagined, 1e-6)})
        found = Golden(opened).check(CPU)
        assert found.ok
        assert (found.key, found.measured, found.difference, found.first) == ("fp32", True, 0.0, None)
        assert str(found) == "golden vector (fp32): within 0 rad, allowed 0..1e-06"

    def test_the_question_comes_back_as_it_was(self, tmp_path: Path, chunk: ActionChunk) -> None:
        asked = Golden(bundle(tmp_path / "stub.dzp", {"fp32": Answer(chunk.positions, chunk.imagined, 1e-6)})).asked
        assert (asked.sampler, asked.seed, asked.chunk_id) == (ASKED.sampler, 5, 3)
        seen, wanted = asked.observation, ASKED.observation
        assert (seen.instruction, seen.t_obs_ns) == (wanted.instruction, wanted.t_obs_ns)
        assert [frame.capture_ns for frame in seen.frames] == [frame.capture_ns for frame in wanted.frames]
        for ours, theirs in zip(seen.frames, wanted.frames, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
        np.testing.assert_array_equal(asked.prefix.positions, PREFIX.positions)
        np.testing.assert_array_equal(seen.state.positions, stub.STATE)

    def test_the_first_joint_and_step_that_differ_are_named(self, tmp_path: Path, chunk: ActionChunk) -> None:
        positions = chunk.positions.copy()
        positions[6, 0] += 0.3
        positions[4, 2] -= 0.05
        opened = bundle(tmp_path / "stub.dzp", {"fp32": Answer(positions, chunk.imagined, 1e-3)})
        found = Golden(opened).check(CPU)
        assert not found.ok
        assert found.first is not None
        assert found.first[:2] == (4, "elbow_flex")
        assert found.first[2] == pytest.approx(0.05)
        assert found.difference == pytest.approx(0.3)
        assert "joint elbow_flex at step 4 is 0.05 rad off, allowed 0..0.001; do not run this bundle" in str(found)
        assert Golden(opened).check(CPU, tolerance=0.31).ok

    def test_nan_is_no_answer(self, tmp_path: Path, chunk: ActionChunk) -> None:
        opened = bundle(
            tmp_path / "stub.dzp", {"fp32": Answer(chunk.positions * np.nan, chunk.imagined, 1e9)}
        )  # fmt: skip
        found = Golden(opened).check(CPU)
        assert found.first is not None
        assert found.first[:2] == (0, "shoulder_pan")

    def test_another_model_is_told_apart(self, tmp_path: Path, chunk: ActionChunk) -> None:
        more = {FILE: golden.encoded(ASKED, {"fp32": Answer(chunk.positions, chunk.imagined, 1e-3)})}
        folder = stub.write(tmp_path / "stub.dzp", bias=0.2, more=more)
        assert not Golden(open_bundle(folder, allow_test_key=True)).check(CPU).ok

    def test_files_that_were_not_measured_are_held_against_float32(self, tmp_path: Path, chunk: ActionChunk) -> None:
        section = stub.section()
        fake = tuple(
            msgspec.structs.replace(v, precision="int8", isa="avx2") for v in section.graphs["video_step"].variants
        )
        graphs = section.graphs | {"video_step": msgspec.structs.replace(section.graphs["video_step"], variants=fake)}
        section = msgspec.structs.replace(section, graphs=graphs)
        off = Answer(chunk.positions + 0.01, chunk.imagined, 0.05)
        only = bundle(tmp_path / "a.dzp", {"fp32": Answer(chunk.positions, chunk.imagined, 1e-4)}, section)
        both = bundle(
            tmp_path / "b.dzp", {"fp32": Answer(chunk.positions, chunk.imagined, 1e-4), "int8 avx2": off}, section
        )  # fmt: skip
        found, measured = Golden(only).check(CPU), Golden(both).check(CPU)
        assert (found.key, found.measured, found.tolerance) == ("int8 avx2", False, pytest.approx(0.01))
        assert "(fp32, as there is no vector for int8 avx2)" in str(found)
        assert (measured.key, measured.measured, measured.tolerance) == ("int8 avx2", True, 0.05)
        assert measured.difference == pytest.approx(0.01)

    def test_there_is_none(self, plain: Bundle) -> None:
        with pytest.raises(BundleError, match=r"no golden\.safetensors; export the bundle with one"):
            Golden(plain)

    @pytest.mark.parametrize("lost", ["frame.1", "joints", "prefix", "positions.fp32", "imagined.fp32", None])
    def test_a_part_is_missing(self, tmp_path: Path, chunk: ActionChunk, lost: str | None) -> None:
        found = tensors.read(golden.encoded(ASKED, {"fp32": Answer(chunk.positions, chunk.imagined, 1e-4)}), "here")
        arrays = {name: array for name, array in found.arrays.items() if name != lost}
        data = tensors.write(arrays, {} if lost is None else found.notes)
        folder = stub.write(tmp_path / "stub.dzp", more={FILE: data})
        with pytest.raises(BundleError, match="not a golden vector"):
            Golden(open_bundle(folder, allow_test_key=True))


class TestWrite:
    def test_the_richest_fresh_decision_is_taken(self) -> None:
        assert writer.pick(DECISIONS) == 1
        assert writer.pick(DECISIONS[:1]) == 0

    @pytest.mark.parametrize("family", stub.FAMILIES)
    def test_every_family_passes_its_own(self, tmp_path: Path, family: str) -> None:
        folder = stub.write(tmp_path / "stub.dzp", stub.section(family))
        opened = open_bundle(folder, allow_test_key=True)
        asked = Asked(DECISIONS[1].observation, PREFIX, opened.manifest.dzedge.samplers[0], 0, 1)
        torchs = golden.decide(opened, asked, CPU)
        path = writer.write(tmp_path, opened, DECISIONS[1], torchs)
        section = stub.section(family)
        again = stub.write(tmp_path / "with.dzp", section, more={FILE: path.read_bytes()})
        found = Golden(open_bundle(again, allow_test_key=True)).check(CPU)
        assert (found.ok, found.difference) == (True, 0.0)

    def test_float32_files_that_do_not_agree_with_torch(self, tmp_path: Path, plain: Bundle) -> None:
        asked = Asked(DECISIONS[1].observation, PREFIX, "video_first(1,1)", 0, 1)
        torchs = golden.decide(plain, asked, CPU)
        torchs.positions[3, 3] += 0.001
        with pytest.raises(ParityError, match=r"float32 files are 0\.001 rad off torch, allowed 0\.\.0\.0002"):
            writer.write(tmp_path, plain, DECISIONS[1], torchs)


class TestSamplerErrors:
    def test_finer_samplers_are_nearer(self, tmp_path: Path) -> None:
        steps = [1, 2, 4, 8]
        section = msgspec.structs.replace(stub.section("flow_vla"), samplers=tuple(f"euler({n})" for n in steps))
        opened = open_bundle(stub.write(tmp_path / "stub.dzp", section), allow_test_key=True)
        found = list(sampler_errors.measure(opened, DECISIONS).values())
        assert found == sorted(found, reverse=True)
        assert found[-1] > 0.0

    @pytest.mark.parametrize("family", stub.FAMILIES)
    def test_of_every_family_for_the_manifest(self, tmp_path: Path, family: str) -> None:
        opened = open_bundle(stub.write(tmp_path / "a.dzp", stub.section(family)), allow_test_key=True)
        found = sampler_errors.measure(opened, DECISIONS)
        assert tuple(found) == opened.manifest.dzedge.samplers
        assert all(np.isfinite(error) for error in found.values())
        section = msgspec.structs.replace(stub.section(family), sampler_errors=found)
        again = open_bundle(stub.write(tmp_path / "b.dzp", section), allow_test_key=True)
        assert again.manifest.dzedge.sampler_errors == found

    def test_is_the_root_mean_square_over_all_but_the_gripper(self, tmp_path: Path) -> None:
        opened = open_bundle(stub.write(tmp_path / "a.dzp", stub.section("dual_vla")), allow_test_key=True)
        fine = sampler_errors.positions(opened, "euler(32)", DECISIONS)
        coarse = sampler_errors.positions(opened, "euler(1)", DECISIONS)
        wanted = float(np.sqrt(((coarse - fine)[..., :5] ** 2).mean()))
        assert sampler_errors.measure(opened, DECISIONS)["euler(1)"] == pytest.approx(wanted, rel=1e-3)

    @pytest.mark.parametrize("errors", [{"joint(4)": -0.1}, {"juggle": 0.1}])
    def test_nonsense_is_refused(self, tmp_path: Path, errors: dict[str, float]) -> None:
        section = msgspec.structs.replace(stub.section(), sampler_errors=errors)
        with pytest.raises(BundleError, match="sampler_errors"):
            stub.write(tmp_path / "a.dzp", section)
