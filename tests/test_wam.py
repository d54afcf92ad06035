"""The world action model family, against its arithmetic done again in NumPy on the stub's weights."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dzedge import config
from dzedge.bundle import Bundle, Section, open_bundle
from dzedge.engine import Machine
from dzedge.errors import BundleError, PolicyError
from dzedge.export import stub
from dzedge.export.stub import ASKED, STATE, frame, observation
from dzedge.policies import WorldActionModel, load_policy
from dzedge.policies.sampler import Sampler
from dzedge.policies.tokenizer import Tokenizer
from dzedge.types import ActionPrefix, Frame, Observation

MS = 1_000_000
CPU = Machine("cpu", "avx2", 1)
NOTHING = ActionPrefix(np.zeros((0, stub.J)))
SAMPLERS = ["video_first(1,1)", "video_first(3,2)", "joint(4)", "flash(1)"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(stub.write(tmp_path_factory.mktemp("bundle") / "stub.dzp"), allow_test_key=True)


def policy(opened: Bundle, sampler: str = "auto", seed: int = 5) -> WorldActionModel:
    made = WorldActionModel(opened, CPU, camera=(120, 160), sampler=sampler, seed=seed)
    made.reset(ASKED)
    return made


class ByHand:
    """The stub's chunk in plain NumPy, float64: what `policy` must agree with."""

    def __init__(self, section: Section, seed: int) -> None:
        self.w = {name: array.astype(np.float64) for name, array in stub.weights().items()}
        self.table = section.statistics
        self.seed = seed
        words = np.zeros(stub.W)
        words[:4] = [stub.VOCABULARY[word] for word in ASKED.split()]
        self.text = words @ self.w["w_text"]

    def latent(self, seen: Frame) -> NDArray[np.float64]:
        # Exact area resize keeps the mean, and the stub's encoder looks at nothing else.
        mean = (seen.image / 127.5 - 1.0).mean(axis=(0, 1))
        return (mean @ self.w["w_image"]).reshape(stub.K, stub.C)

    def drive(self, observed: Observation) -> float:
        total = 0.0
        for seen in observed.frames:
            latent = self.latent(seen)
            rows = latent @ self.w["w_key"] + latent @ self.w["w_value"]
            total += (2.0 + (seen.capture_ns - observed.t_obs_ns) / 200e6) * rows.sum()
        total += 1.5 * (self.text @ self.w["w_words"]).sum()  # the row of language
        hidden = (stub.S - len(observed.frames)) * stub.K
        return total / (stub.N_WAM * stub.HD) + self.text.mean() - hidden / (stub.K + stub.N_WAM)

    def chunk(
        self, observed: Observation, sampler: Sampler, prefix: NDArray[np.float64], chunk_id: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Positions, Shape (H, J), and imagined latents, Shape (F, K, C)."""
        generator = np.random.Generator(np.random.Philox(key=np.array([self.seed, chunk_id], np.uint64)))
        video = generator.standard_normal((stub.F, stub.K, stub.C), dtype=np.float32).astype(np.float64)
        action = generator.standard_normal((stub.H, stub.J), dtype=np.float32).astype(np.float64)
        table = {name: np.array(getattr(self.table, name)) for name in ("action_std", "residual_std")}
        state = (STATE - np.array(self.table.state_mean)) / np.array(self.table.state_std)
        scaled, mask = np.zeros_like(action), np.zeros((stub.H, 1))
        scaled[: len(prefix)] = (prefix - STATE) / table["action_std"][: len(prefix)]
        mask[: len(prefix)] = 1.0
        now, drive = self.latent(observed.frames[-1]), self.drive(observed)

        def v_video(t: float) -> NDArray[np.float64]:
            return (0.5 * now - video) * (1 - 0.5 * t) + drive + self.text.mean() + t

        def v_action(t: float, t_video: float) -> NDArray[np.float64]:
            mean = video.mean(axis=0)
            plan = (mean @ self.w["w_key"] + t_video + mean @ self.w["w_value"]).mean()
            return mask * (scaled - action) / (1 - t) + (1 - mask) * (plan + t + state.sum() - action + t)

        if sampler.coupled:
            n = sampler.video_steps
            for t in np.arange(n) / n:
                moved = v_action(t, t)
                video += v_video(t) / n
                action += moved / n
        else:
            for t in np.arange(sampler.video_steps) / sampler.video_steps:
                video += v_video(t) / sampler.video_steps
            for t in np.arange(sampler.action_steps) / sampler.action_steps:
                action += v_action(t, 1.0) / sampler.action_steps
        return STATE + action * table["action_std"], now + video * table["residual_std"]


class TestChunk:
    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("committed", [0, 1, 3])
    @pytest.mark.parametrize("numbers", [(0,), (0, 3)])
    def test_agrees_with_the_sum_by_hand(
        self, opened: Bundle, sampler: str, committed: int, numbers: tuple[int, ...]
    ) -> None:
        prefix = STATE + 0.01 * np.arange(1, committed + 1)[:, None] * np.ones(stub.J)
        found = policy(opened, sampler).infer(observation(*numbers), ActionPrefix(prefix), 7)
        hand = ByHand(opened.manifest.dzedge, seed=5)
        positions, imagined = hand.chunk(observation(*numbers), Sampler.parse(sampler), prefix, 7)
        np.testing.assert_allclose(found.positions, positions, atol=2e-6)
        np.testing.assert_allclose(found.imagined, imagined, atol=2e-5)

    def test_shapes_types_and_times(self, opened: Bundle) -> None:
        found = policy(opened).infer(observation(0, 3), NOTHING, 11)
        assert (found.positions.shape, found.positions.dtype) == ((8, 6), np.float64)
        assert (found.imagined.shape, found.imagined.dtype) == ((4, 7, 10), np.float32)
        assert found.t_obs_ns == frame(3).capture_ns
        assert (found.dt_ns, found.chunk_id, found.epoch) == (100 * MS, 11, 2)

    @pytest.mark.parametrize("sampler", SAMPLERS)
    @pytest.mark.parametrize("committed", [1, 2, 3])
    def test_committed_actions_are_kept(self, opened: Bundle, sampler: str, committed: int) -> None:
        prefix = np.random.default_rng(0).normal(0, 0.1, (committed, stub.J))
        found = policy(opened, sampler).infer(observation(0, 3), ActionPrefix(prefix), 0)
        np.testing.assert_allclose(found.positions[:committed], prefix, atol=1e-6)

    def test_no_prefix_is_left_from_the_chunk_before(self, opened: Bundle) -> None:
        made = policy(opened)
        before = made.infer(observation(0, 3), NOTHING, 0).positions
        made.infer(observation(0, 3), ActionPrefix(np.ones((3, stub.J))), 0)
        np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, before)

    def test_prefix_longer_than_trained_for(self, opened: Bundle) -> None:
        with pytest.raises(PolicyError, match="prefix of 4 actions: must be 0 to 3"):
            policy(opened).infer(observation(0), ActionPrefix(np.zeros((4, stub.J))), 0)

    def test_result_is_the_callers(self, opened: Bundle) -> None:
        made = policy(opened)
        first = made.infer(observation(0, 3), NOTHING, 0)
        kept = first.positions.copy(), first.imagined.copy()
        made.infer(observation(1, 4), NOTHING, 1)
        np.testing.assert_array_equal(first.positions, kept[0])
        np.testing.assert_array_equal(first.imagined, kept[1])

    def test_a_model_of_nan_gives_nan_and_no_crash(self, tmp_path: Path) -> None:
        bad = open_bundle(stub.write(tmp_path / "bad.dzp", bias=float("nan")), allow_test_key=True)
        assert np.isnan(policy(bad).infer(observation(0), NOTHING, 0).positions).all()


class TestSeed:
    def test_same_seed_same_bytes(self, opened: Bundle) -> None:
        first, second = (policy(opened).infer(observation(0, 3), NOTHING, 3) for _ in range(2))
        assert first.positions.tobytes() == second.positions.tobytes()
        assert first.imagined.tobytes() == second.imagined.tobytes()

    def test_next_seed_or_chunk_differs(self, opened: Bundle) -> None:
        first = policy(opened, "joint(4)").infer(observation(0, 3), NOTHING, 3).positions
        assert not np.array_equal(
            first, policy(opened, "joint(4)", seed=6).infer(observation(0, 3), NOTHING, 3).positions
        )
        assert not np.array_equal(first, policy(opened, "joint(4)").infer(observation(0, 3), NOTHING, 4).positions)


class TestFrames:
    def test_a_frame_seen_early_changes_nothing(self, opened: Bundle) -> None:
        early, late = policy(opened), policy(opened)
        for number in range(4):
            early.observe(frame(number))
        first, second = (made.infer(observation(0, 3), NOTHING, 0) for made in (early, late))
        np.testing.assert_array_equal(first.positions, second.positions)

    def test_each_frame_is_encoded_once(self, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        made = policy(opened)
        runs: list[int] = []
        encode = made.encoder.run
        monkeypatch.setattr(made.encoder, "run", lambda: runs.append(1) or encode())
        for number in range(4):
            made.observe(frame(number))
            made.observe(frame(number))
        made.infer(observation(0, 3), NOTHING, 0)
        assert len(runs) == 4

    def test_memory_is_a_ring(self, opened: Bundle) -> None:
        made = policy(opened)
        first = made.latent(frame(0))
        for number in range(100):
            made.observe(frame(number))
        np.testing.assert_array_equal(made.latent(frame(0)), first)

    def test_history_matters(self, opened: Bundle) -> None:
        made = policy(opened)
        alone = made.infer(observation(3), NOTHING, 0).positions
        assert not np.array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, alone)


class TestThreeUses:
    def test_imagine_is_the_video_of_act(self, opened: Bundle) -> None:
        made = policy(opened)
        acted = made.infer(observation(0, 3), NOTHING, 4).imagined
        np.testing.assert_array_equal(made.imagine(observation(0, 3), 4), acted)

    def test_actions_of_an_imagined_video_are_those_of_act(self, opened: Bundle) -> None:
        made = policy(opened)
        acted = made.infer(observation(0, 3), NOTHING, 4)
        inferred = made.infer_actions(observation(0, 3), acted.imagined, NOTHING, 4)
        np.testing.assert_allclose(inferred.positions, acted.positions, atol=1e-6)

    def test_pictures(self, opened: Bundle) -> None:
        made = policy(opened)
        pictures = made.decode(made.imagine(observation(0, 3)))
        assert (pictures.shape, pictures.dtype) == ((4, 72, 96, 3), np.uint8)
        latent = made.latent(frame(0))
        colour = np.tanh(latent.reshape(-1).astype(np.float64) @ stub.weights()["w_colour"])
        expected = np.rint((colour + 1) * 127.5)
        np.testing.assert_allclose(made.decode(latent[None])[0, 5, 5], expected, atol=1)

    def test_metres(self, opened: Bundle) -> None:
        np.testing.assert_allclose(policy(opened).metres(np.ones((stub.K, stub.C), np.float32)), 0.25)


class TestInstruction:
    @pytest.mark.parametrize("text", ["reach the red cube", "Reach the RED cube!", "  reach  the red, cube "])
    def test_case_and_punctuation_do_not_matter(self, opened: Bundle, text: str) -> None:
        made = policy(opened)
        words = made.text.graph.inputs["words"].copy()
        made.reset(text)
        np.testing.assert_array_equal(made.text.graph.inputs["words"], words)

    def test_unknown_words_are_named(self, opened: Bundle) -> None:
        with pytest.raises(
            PolicyError,
            match=r"unknown word 'rech' \(did you mean 'reach'\?\), unknown word 'unicorn'; known: reach, press",
        ):
            policy(opened).reset("rech the unicorn")

    def test_a_refused_instruction_leaves_the_old_one(self, opened: Bundle) -> None:
        made = policy(opened)
        before = made.infer(observation(0), NOTHING, 0).positions
        with pytest.raises(PolicyError):
            made.reset("juggle")
        np.testing.assert_array_equal(made.infer(observation(0), NOTHING, 0).positions, before)

    def test_too_many_words(self, opened: Bundle) -> None:
        with pytest.raises(PolicyError, match="9 words: must be 0 to 8"):
            policy(opened).reset("reach " * 9)

    def test_no_words_are_padding(self, opened: Bundle) -> None:
        assert Tokenizer(opened.manifest.dzedge.language).ids("").tolist() == [0] * 8

    def test_unicode_is_refused_not_dropped(self, opened: Bundle) -> None:
        with pytest.raises(PolicyError, match="unknown word 'würfel'"):
            policy(opened).reset("reach the red Würfel")


class TestSampler:
    @pytest.mark.parametrize(
        ("text", "parsed"),
        [
            ("video_first(1,1)", Sampler(False, 1, 1)),
            ("video_first(12, 3)", Sampler(False, 12, 3)),
            ("joint(4)", Sampler(True, 4, 4)),
            ("flash(1)", Sampler(True, 1, 1)),
        ],
    )
    def test_parse(self, text: str, parsed: Sampler) -> None:
        assert Sampler.parse(text) == parsed

    @pytest.mark.parametrize(
        "text", ["", "auto", "joint", "joint(0)", "joint(1,2)", "video_first(4)", "flash(2)", "ddim(4)"]
    )
    def test_refused(self, text: str) -> None:
        with pytest.raises(PolicyError, match="must be video_first"):
            Sampler.parse(text)

    def test_robot_file_may_choose(self, opened: Bundle) -> None:
        assert policy(opened).sampler == Sampler(False, 1, 1)
        assert policy(opened, "joint(2)").sampler == Sampler(True, 2, 2)


class TestMisfits:
    """Well signed bundles whose parts do not fit each other."""

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (lambda s: {"horizon": 9}, "statistics.action_std: shape"),
            (lambda s: {"image": msgspec.structs.replace(s.image, width=128)}, "graph frame_encoder: input 'image'"),
            (lambda s: {"language": msgspec.structs.replace(s.language, words=9)}, "graph text: input 'words'"),
            (lambda s: {"window": msgspec.structs.replace(s.window, slots=3)}, "graph context: input 'key'"),
            (lambda s: {"window": msgspec.structs.replace(s.window, head_dim=4)}, "graph prefill: output 'key'"),
            (lambda s: {"statistics": scaled(s, "action_std", 0.0)}, "action_std: 0.0 must be positive"),
            (lambda s: {"statistics": scaled(s, "state_std", -1.0)}, "must be positive"),
            (lambda s: {"statistics": ragged(s)}, r"latent_std: shape \(0,\)"),
            (lambda s: {"samplers": ("joint(4)",), "graphs": swapped(s)}, "graph text: "),
        ],
    )  # fmt: skip
    def test_named(self, tmp_path: Path, change: Callable[[Section], dict[str, object]], words: str) -> None:
        section = stub.section()
        section = msgspec.structs.replace(section, **change(section))
        bad = open_bundle(stub.write(tmp_path / "bad.dzp", section), allow_test_key=True)
        with pytest.raises(BundleError, match=words):
            policy(bad)

    def test_bundle_for_this_arm(self, opened: Bundle) -> None:
        made = load_policy(config.load(config.default_path()), opened)
        assert made.history_ns == (200 * MS, 0)
        assert (made.horizon, made.dt_ns, made.max_prefix) == (8, 100 * MS, 3)


class TestAbsoluteJoints:
    def test_an_absolute_gripper_ignores_the_anchor(self, tmp_path: Path) -> None:
        section = msgspec.structs.replace(stub.section(), absolute_joints=("gripper",))
        made = policy(open_bundle(stub.write(tmp_path / "grip.dzp", section), allow_test_key=True))
        relative = policy(open_bundle(stub.write(tmp_path / "rel.dzp"), allow_test_key=True))
        found, other = (p.infer(observation(0), NOTHING, 0).positions for p in (made, relative))
        np.testing.assert_array_equal(found[:, :5], other[:, :5])
        np.testing.assert_allclose(found[:, 5], other[:, 5] - STATE[5], atol=1e-12)


def scaled(section: Section, name: str, factor: float) -> object:
    values = np.array(getattr(section.statistics, name)) * factor
    table = msgspec.to_builtins(section.statistics) | {name: values.tolist()}
    return msgspec.convert(table, type(section.statistics))


def ragged(section: Section) -> object:
    table = section.statistics
    return msgspec.structs.replace(table, latent_std=((1.0,), *table.latent_std[1:]))


def swapped(section: Section) -> object:
    graphs = dict(section.graphs)
    graphs["text"], graphs["prefill"] = graphs["prefill"], graphs["text"]
    return graphs
