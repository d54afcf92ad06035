"""What holds for every family: prefix, seed, frames, nan, what does not fit, and a whole run in lockstep."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from dzedge import config, report
from dzedge.bundle import Bundle, Section, open_bundle
from dzedge.errors import BundleError, PolicyError
from dzedge.export import stub
from dzedge.export.stub import ASKED, frame, observation
from dzedge.lockstep import run_lockstep
from dzedge.policies import FAMILIES, BundledPolicy, load_policy
from dzedge.robot import verified_bundle
from dzedge.types import ActionPrefix

NOTHING = ActionPrefix(np.zeros((0, stub.J)))
NOISY = {"wam": "joint(4)", "token_vla": "sample(1.0)"}
VLAS = ("flow_vla", "token_vla", "dual_vla")
ROBOT = config.load(config.default_path())


@pytest.fixture(scope="module", params=stub.FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = stub.write(tmp_path_factory.mktemp(request.param) / "stub.dzp", stub.section(request.param))
    return open_bundle(folder, allow_test_key=True)


def policy(opened: Bundle, sampler: str = "auto", seed: int = 5) -> BundledPolicy:
    chosen = msgspec.structs.replace(ROBOT.policy, sampler=sampler)
    robot = msgspec.structs.replace(ROBOT, policy=chosen, sim=msgspec.structs.replace(ROBOT.sim, seed=seed))
    made = load_policy(robot, opened)
    made.reset(ASKED)
    return made


def noisy(opened: Bundle) -> str:
    return NOISY.get(opened.manifest.dzedge.family, "auto")


def test_the_family_in_the_manifest_is_the_class_that_runs(opened: Bundle) -> None:
    assert type(policy(opened)) is FAMILIES[opened.manifest.dzedge.family]


def test_shapes_types_and_times(opened: Bundle) -> None:
    made = policy(opened)
    assert (made.horizon, made.dt_ns, made.max_prefix) == (8, 100_000_000, 3)
    assert made.history_ns == (200_000_000, 0)
    found = made.infer(observation(0, 3), NOTHING, 11)
    frames = 4 if opened.manifest.dzedge.family == "wam" else 0
    assert (found.positions.shape, found.positions.dtype) == ((8, 6), np.float64)
    assert (found.imagined.shape, found.imagined.dtype) == ((frames, 7, 10), np.float32)
    assert np.isfinite(found.positions).all()
    assert found.t_obs_ns == frame(3).capture_ns
    assert (found.dt_ns, found.chunk_id, found.epoch) == (100_000_000, 11, 2)


def test_a_prefix_longer_than_trained_for(opened: Bundle) -> None:
    with pytest.raises(PolicyError, match="prefix of 4 actions: must be 0 to 3; shorten it"):
        policy(opened).infer(observation(0), ActionPrefix(np.zeros((4, stub.J))), 0)


def test_no_prefix_is_left_from_the_chunk_before(opened: Bundle) -> None:
    made = policy(opened)
    before = made.infer(observation(0, 3), NOTHING, 0).positions
    bound = made.infer(observation(0, 3), ActionPrefix(np.ones((3, stub.J))), 0).positions
    assert not np.array_equal(bound, before)
    np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, before)


def test_noise_is_of_seed_and_chunk(opened: Bundle) -> None:
    made, other = policy(opened, noisy(opened)), policy(opened, noisy(opened), seed=6)
    first = made.infer(observation(0, 3), NOTHING, 3).positions
    assert not np.array_equal(made.infer(observation(0, 3), NOTHING, 4).positions, first)
    assert not np.array_equal(other.infer(observation(0, 3), NOTHING, 3).positions, first)
    assert made.infer(observation(0, 3), NOTHING, 3).positions.tobytes() == first.tobytes()


def test_a_result_is_the_callers(opened: Bundle) -> None:
    made = policy(opened)
    first = made.infer(observation(0, 3), NOTHING, 0)
    kept = first.positions.copy()
    made.infer(observation(1, 4), NOTHING, 1)
    np.testing.assert_array_equal(first.positions, kept)


def test_a_frame_seen_early_changes_nothing_and_is_encoded_once(
    opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, late = policy(opened), policy(opened)
    runs: list[int] = []
    encode = early.encoder.run
    monkeypatch.setattr(early.encoder, "run", lambda: runs.append(1) or encode())
    for number in (0, 1, 1, 2, 3, 3):
        early.observe(frame(number))
    first, second = (made.infer(observation(0, 3), NOTHING, 0).positions for made in (early, late))
    np.testing.assert_array_equal(first, second)
    assert len(runs) == 4


@pytest.mark.parametrize("numbers", [(3,), (1, 3), (0, 4)])
def test_what_is_seen_matters(opened: Bundle, numbers: tuple[int, ...]) -> None:
    def ask(*frames: int) -> bytes:
        return policy(opened).infer(observation(*frames), NOTHING, 0).positions.tobytes()

    assert ask(*numbers) != ask(0, 3)
    assert ask(0, 3) == ask(0, 3)


def test_a_new_task_forgets_the_frames_of_the_old_one(opened: Bundle) -> None:
    """A clock may be set back between two scenes: the same capture time is then another picture."""
    made, fresh = policy(opened), policy(opened)
    made.infer(observation(0, 3), NOTHING, 0)
    now = observation(0, 3)
    first, second = now.frames
    swapped = replace(first, image=second.image), replace(second, image=first.image)
    other = replace(now, frames=swapped)
    expected = fresh.infer(other, NOTHING, 0).positions
    made.reset(ASKED)
    np.testing.assert_array_equal(made.infer(other, NOTHING, 0).positions, expected)
    assert not np.array_equal(policy(opened).infer(now, NOTHING, 0).positions, expected)


def test_words_matter_and_unknown_ones_leave_the_old_task(opened: Bundle) -> None:
    made = policy(opened)
    before = made.infer(observation(0, 3), NOTHING, 0).positions
    with pytest.raises(PolicyError, match="unknown word 'unicorn'"):
        made.reset("reach the unicorn")
    np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, before)
    made.reset("press the blue cube")
    assert not np.array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, before)


def test_a_model_of_nan_gives_nan_and_no_crash(opened: Bundle, tmp_path: Path) -> None:
    section = msgspec.structs.replace(opened.manifest.dzedge, files=())
    bad = open_bundle(stub.write(tmp_path / "bad.dzp", section, bias=float("nan")), allow_test_key=True)
    assert np.isnan(policy(bad).infer(observation(0, 3), NOTHING, 0).positions).all()


@pytest.mark.parametrize("sampler", ["video_first(1,1)", "euler(4)", "greedy"])
def test_a_sampler_of_another_family_in_the_robot_file(opened: Bundle, sampler: str) -> None:
    name = sampler.partition("(")[0]
    if any(own.startswith(name) for own in opened.manifest.dzedge.samplers):
        assert policy(opened, sampler).infer(observation(0), NOTHING, 0) is not None
    else:
        with pytest.raises(PolicyError, match=r"must be .*; change it"):
            policy(opened, sampler)


Change = Callable[[Section], dict[str, Any]]


def window(**changed: int) -> Change:
    return lambda s: {"window": msgspec.structs.replace(s.window, **changed)}


def video(**changed: int) -> Change:
    return lambda s: {"video": msgspec.structs.replace(s.video, **changed)}


def grown(section: Section) -> dict[str, Any]:
    """Of a horizon that the statistics know and the graphs do not."""
    table = msgspec.to_builtins(section.statistics)
    longer = {name: rows + rows[:1] for name, rows in table.items() if name.startswith("action_") and rows}
    return {"horizon": 9, "statistics": msgspec.convert(table | longer, type(section.statistics))}


@pytest.mark.parametrize(
    ("family", "change", "words"),
    [
        *((family, lambda s: {"horizon": 9}, "statistics.action_std: shape") for family in VLAS),
        *((family, video(tokens=8), "statistics.latent_mean: shape") for family in VLAS),
        ("flow_vla", window(head_dim=4), "graph context: output 'key'"),
        ("flow_vla", window(layers=2), "graph context: output 'key'"),
        ("token_vla", window(heads=2), "graph context: output 'key'"),
        ("flow_vla", grown, "graph action_step: input 'action'"),
        ("token_vla", grown, "graph token_step: input 'past_key'"),
        ("dual_vla", grown, "graph action_step: input 'action'"),
    ],
)
def test_parts_that_do_not_fit_are_named(tmp_path: Path, family: str, change: Change, words: str) -> None:
    section = stub.section(family)
    section = msgspec.structs.replace(section, **change(section))
    bad = open_bundle(stub.write(tmp_path / "bad.dzp", section), allow_test_key=True)
    with pytest.raises(BundleError, match=words):
        policy(bad)


@pytest.mark.parametrize("family", VLAS)
def test_a_graph_of_another_family_is_named(tmp_path: Path, family: str) -> None:
    section = stub.section(family)
    graphs = dict(section.graphs)
    step = "token_step" if family == "token_vla" else "action_step"
    graphs[step] = graphs["frame_encoder"]
    changed = msgspec.structs.replace(section, graphs=graphs)
    bad = open_bundle(stub.write(tmp_path / "bad.dzp", changed), allow_test_key=True)
    with pytest.raises(BundleError, match=f"graph {step}: inputs are \\['image'\\], wanted"):
        policy(bad)


@pytest.mark.parametrize("family", VLAS)
def test_a_policy_that_imagines_nothing_drives_the_robot(tmp_path: Path, family: str) -> None:
    """Mailboxes, control, history, report and picture with an imagination of size 0."""
    folder = stub.write(tmp_path / "stub.dzp", stub.section(family))
    robot = msgspec.structs.replace(ROBOT, policy=msgspec.structs.replace(ROBOT.policy, bundle=str(folder)))
    opened = verified_bundle(robot)
    red = dict(task="reach the red cube", duration_s=1.5, on_status=lambda status: None)
    result = run_lockstep(robot, opened, seed=3, **red)
    assert result.chunks >= 4
    assert not set(result.refused) & {"chunk_shape", "chunk_not_finite"}
    assert {chunk.imagined.size for chunk in result.history.imaginations} == {0}
    assert report.imaginer(robot, opened) is None
    files = report.write(result, robot, opened, tmp_path)
    assert all(Path(file).stat().st_size > 500 for file in files)
    assert run_lockstep(robot, opened, seed=3, **red).wire_sha256 == result.wire_sha256
