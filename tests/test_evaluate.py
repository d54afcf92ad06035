"""Evaluation: settings, episodes in workers and alone, and the document."""

import json
from contextlib import contextmanager
from functools import partial

import msgspec
import pytest

from dzedge import evaluate
from dzedge.config import default_path, load
from dzedge.errors import DzedgeError, SafetyError, UsageError
from dzedge.evaluate import Episode, Robots, Settings
from dzedge.history import History, RunResult
from dzedge.latency import DEFAULT, Latency
from dzedge.lockstep import run_lockstep
from dzedge.robot import verified_bundle
from dzedge.suite import Scene

SETTINGS = Settings("reach", 2, (0,))
SCENES = [Scene(10, "reach the red cube"), Scene(11, "circle over the blue cube"), Scene(12, "press the red cube")]


@pytest.fixture(scope="module")
def parts():
    config = load(default_path())
    return config, verified_bundle(config)


@contextmanager
def progress(words, total):
    yield lambda so="": None


def result(task: str, success: bool | None = True, **more) -> RunResult:
    return RunResult(task, success, 0, 2.5, 7, {}, 0, "", {}, History(), **more)


def robots(told: list, **more) -> Robots:
    """Stands in for robots: notes what is asked, answers at once. Proves nothing about them."""

    def play(kind, config, bundle, *, task, seed, **rest):
        told.append((kind, config, task, seed, rest))
        return result(task, **more)

    def measure(config, bundle, on_decision):
        told.append(("measure", config, None, None, {}))
        return Latency.of([5.0], bundle.manifest.dzedge.model_id, 1)

    return Robots(partial(play, "lockstep"), partial(play, "realtime"), measure)


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (Settings("reach", 1, (0,), synchronous=True, delay_ms=5.0), "--synchronous with --delay 5"),
            (Settings("reach", 1, (0,), realtime=True, delay_ms=5.0), "--realtime"),
            (Settings("reach", 1, (0,), realtime=True, synchronous=True), "--realtime"),
            (Settings("reach", 1, (0,), realtime=True, prefix=False), "--realtime"),
            (Settings("reach", 1, (0,), realtime=True, smoothing=False), "--realtime"),
        ],
    )
    def test_what_cannot_be_together_is_refused(self, settings, words):
        with pytest.raises(UsageError, match=words):
            settings.check()

    def test_what_can_is_not(self):
        Settings("reach", 1, (0,), realtime=True, execute=4).check()
        Settings("reach", 1, (0,), delay_ms=5.0, prefix=False, smoothing=False).check()

    def test_execute_is_a_rate_of_chunks(self, parts):
        config, bundle = parts
        for execute, rate_hz in ((1, 10.0), (4, 2.5), (7, 10 / 7)):
            wanted = Settings("reach", 1, (0,), execute=execute).apply(config, bundle)
            assert wanted.policy.rate_hz == pytest.approx(rate_hz)
        assert SETTINGS.apply(config, bundle).policy.rate_hz == config.policy.rate_hz
        for execute in (0, 8):
            with pytest.raises(UsageError, match=f"--execute {execute}: must be 1 to 7"):
                Settings("reach", 1, (0,), execute=execute).apply(config, bundle)
        with pytest.raises(UsageError, match=r"--execute 7 --realtime: 1\.43 chunks"):
            Settings("reach", 1, (0,), execute=7, realtime=True).apply(config, bundle)

    def test_workers_have_one_thread_each_and_a_real_robot_its_own(self, parts):
        config, bundle = parts
        config = msgspec.structs.replace(config, policy=msgspec.structs.replace(config.policy, threads=3))
        assert SETTINGS.apply(config, bundle).policy.threads == 1
        assert Settings("reach", 1, (0,), realtime=True).apply(config, bundle).policy.threads == 3


class TestRun:
    def play(self, parts, settings, table=None, told=None, **more):
        config, bundle = parts
        told = [] if told is None else told
        chosen = SCENES if more.pop("all", False) else SCENES[:1]
        return told, evaluate.run(robots(told, **more), config, bundle, settings, chosen, 1, table, progress)

    def test_lockstep_draws_what_was_measured_with_the_robots_own_threads(self, parts):
        settings = Settings("reach", 1, (0,), execute=4, delay_ms=20.0, prefix=False, smoothing=False)
        told, entry = self.play(parts, settings)
        assert [kind for kind, *_ in told] == ["measure", "lockstep"]
        assert told[0][1].policy.threads == parts[0].policy.threads == 0 and told[1][1].policy.threads == 1
        assert told[0][1].policy.rate_hz == 2.5
        drawn = told[1][4]["conditions"]
        assert drawn.latency.quantiles_ms[0] == 5.0 and drawn.delay_ms == 20.0
        assert not drawn.prefix and not drawn.smoothing and not drawn.synchronous
        assert entry["latency"]["quantiles_ms"] == list(drawn.latency.quantiles_ms)

    def test_a_document_gives_its_latency_back(self, parts, tmp_path):
        _, entry = self.play(parts, SETTINGS)
        file = tmp_path / "first.json"
        file.write_text(json.dumps({"results": [entry]}))
        told, again = self.play(parts, SETTINGS, file)
        assert [kind for kind, *_ in told] == ["lockstep"] and again == entry
        told, other = self.play(parts, SETTINGS, "default")
        assert told[0][4]["conditions"].latency == DEFAULT and other != entry

    def test_a_world_that_waits_needs_no_latency(self, parts):
        told, entry = self.play(parts, Settings("reach", 1, (0,), synchronous=True))
        assert [kind for kind, *_ in told] == ["lockstep"] and entry["latency"] is None
        assert told[0][4]["conditions"].synchronous

    def test_real_time_plays_the_same_scenes_one_by_one(self, parts):
        told, entry = self.play(parts, Settings("reach", 1, (0,), realtime=True), all=True)
        assert [(kind, task, seed) for kind, _, task, seed, _ in told] == [
            ("realtime", scene.task, scene.seed) for scene in SCENES
        ]
        assert [config.sim.seed for _, config, *_ in told] == [scene.seed for scene in SCENES]
        assert entry["latency"] is None and entry["settings"]["realtime"] is True

    def test_an_interrupted_episode_is_no_failure(self, parts):
        with pytest.raises(DzedgeError, match="interrupted in scene 10"):
            self.play(parts, Settings("reach", 1, (0,), realtime=True), success=None)

    def test_the_document_says_how_and_what(self, parts):
        _, entry = self.play(parts, SETTINGS, all=True, measure=float("nan"))
        assert entry["policy"] == "wam-nano" and len(entry["manifest_sha256"]) == 64
        settings = entry["settings"]
        assert settings["sampler"] == parts[1].manifest.dzedge.samplers[0] and settings["seeds"] == [0]
        assert {"execute", "delay_ms", "synchronous", "prefix", "smoothing", "precision"} <= set(settings)
        assert (entry["seen"]["n"], entry["semantic"]["n"], entry["novel"]["n"]) == (1, 1, 1)
        assert entry["novel"]["verbs"]["circle"]["success"] == 1.0
        assert entry["episodes"][0]["measure"] is None and entry["episodes"][0]["chunks"] == 7
        json.dumps(entry, allow_nan=False)


def test_an_arm_stopped_for_safety_is_a_failure(parts):
    def stopped(config, bundle, *, task, seed):
        raise SafetyError("control: FAULT")

    episode = evaluate.attempt(stopped, parts[0], SCENES[0])
    assert not episode.success and episode.fault == "control: FAULT" and episode.task == SCENES[0].task


def test_words_about_a_progress():
    played = [Episode(i, "", "", split, i % 2 == 0, 1.0) for i in range(4) for split in ("novel", "seen")]
    assert evaluate.tally(played) == "seen 50 %  novel 50 %" and evaluate.tally([]) == ""


def test_an_episode_is_the_same_alone_after_others_and_in_a_worker(parts):
    """In real lockstep: nothing that a process has played before may show in what it plays next."""
    config = msgspec.structs.replace(parts[0], task=msgspec.structs.replace(parts[0].task, timeout_s=2.0))
    runner = partial(run_lockstep, duration_s=None, lean=True)
    in_turn = list(evaluate.episodes(runner, config, SCENES[:2], 1))
    assert evaluate.attempt(runner, config, SCENES[0]) == in_turn[0]  # after both
    assert list(evaluate.episodes(runner, config, SCENES[1::-1], 2)) == in_turn[::-1]  # each first in its process
    assert in_turn[0].measure != in_turn[1].measure and in_turn[0].chunks > 5
