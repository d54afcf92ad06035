"""Causal consistency of a bundle, judged by wamprobe: does what the model ties together go together in the world?

    python -m dzedge.export.yardstick_wamprobe bundles/wam-nano.dzp --contexts 40

wamprobe (0.1.0, Apache-2.0, no dependencies) restores one state, branches candidate actions from it, and compares the
future that a model predicts for each with the true one: separation, direction, error, ranking. Its adapters answer
`predict_future(context, action)`. A bundle whose video stream can be told actions answers that; and every bundle ties
together two links more that can be wrong. Each is a probe:

    forward   candidate motions are told to `imagine`; predicted is the imagined tip: p(video | action)
    inverse   candidate motions are played; the true video goes to `infer_actions`; predicted is where those
              actions lead when they are played from the same state: p(action | video)
    dream     candidates are instructions; predicted is the imagined tip; true is where the model's own actions lead
              when they are played: does it do what it imagines?
    untold    the same as forward, without the telling: the control that has to come out as "ignores the action"

States are the tip's x and y [m] at the imagined frames; scenes are the tuning scenes (500 000 and up). wamprobe takes
1e-12 m for standing still; here an arm at rest sags 2 mm, so ways are given to it with a dead band of STILL. Its
permutation test cannot fall below 1/6 with the three candidates of a dream, and a dream has no no-op.
"""

import argparse
import importlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dzedge.bundle import open_bundle
from dzedge.engine import Machine
from dzedge.hardware.sim.camera import HEIGHT, WIDTH, Camera
from dzedge.hardware.sim.expert import start_pose
from dzedge.hardware.sim.kinematics import solve
from dzedge.hardware.sim.scene import COLOURS
from dzedge.hardware.sim.world import World
from dzedge.policies import WorldActionModel
from dzedge.types import ActionPrefix, Frame, JointState, Observation

log = logging.getLogger("dzedge.export.yardstick_wamprobe")

Vector = NDArray[np.float64]
FIRST_SCENE = 500_000
CONTROL_S = 0.01
STEP_M = 0.01
"""How far a candidate motion takes the tip in one action [m]."""
STILL = 0.005
"""Standing still: never that far from the start [m]; what the tokenizer aims at for the tip."""
DIRECTIONS = {"noop": (0.0, 0.0), "away": (1.0, 0.0), "near": (-1.0, 0.0), "left": (0.0, 1.0), "right": (0.0, -1.0)}
METRICS = (
    "action_dependence", "action_dependence_permutation_p_value", "counterfactual_direction_accuracy",
    "noop_stability", "state_ade", "state_fde", "candidate_ranking_spearman", "top1_regret",
)  # fmt: skip
"""wamprobe's names of its figures."""
Figures = dict[str, tuple[float, float, float]]
"""Mean over contexts and the 95 % interval of wamprobe's bootstrap over contexts, by metric."""


@dataclass(frozen=True, slots=True)
class Table:
    """The simulated table at rest in a scene, as a policy sees it. tip: Shape (3,), [m]; cubes: colours present."""

    observation: Observation
    tip: Vector
    cubes: dict[str, Vector]


class Bench:
    """A policy and the world that it is judged in. Restoring a scene gives the same state, bit for bit."""

    def __init__(self, policy: WorldActionModel) -> None:
        self.policy = policy
        self.world = World(0)
        self._camera = Camera(self.world)
        self._stride = policy.section.video.frame_dt_ns // policy.dt_ns
        self._clock_ns = 0
        self._told = self.world.joints()

    def restore(self, scene: int, instruction: str = "") -> Table:
        """The arm rests somewhere over the table; its last two frames are alike but for their noise."""
        world = self.world
        world.reset(scene, start_pose(np.random.Generator(np.random.Philox(key=[scene, 0x9A3B]))))
        self._told = world.joints()
        self._play(np.tile(self._told, (self._stride, 1)))
        # Frames are known by their capture time: each restoring has its own.
        self._clock_ns += 100 * self.policy.dt_ns
        before = self._frame(-self._stride)
        now = self._frame(0)
        self.policy.reset(instruction)
        state = JointState(world.joints(), world.velocities(), self._clock_ns)
        cubes = world.cubes()
        named = {COLOURS[i]: cubes[i, :3].copy() for i in np.flatnonzero(cubes[:, 3])}
        return Table(Observation((before, now), state, self._clock_ns, instruction, 0), world.tip(), named)

    def play(self, chunk: Vector, see: bool = False) -> tuple[Vector, NDArray[np.float32]]:
        """Play targets from the present state. chunk: Shape (H, J), [rad].

        Returns the tip at the imagined frames, Shape (F, 3), [m], and, where `see`, latents of the true frames then,
        Shape (F, K, C).
        """
        tips, latents = [], []
        for first in range(0, len(chunk), self._stride):
            self._play(chunk[first : first + self._stride])
            tips.append(self.world.tip())
            if see:
                latents.append(self.policy.latent(self._frame(first + self._stride)))
        return np.array(tips), np.array(latents, np.float32)

    def _play(self, chunk: Vector) -> None:
        """Lead the servos from target to target as the control loop does."""
        ticks = round(self.policy.dt_ns * 1e-9 / CONTROL_S)
        for target in chunk:
            for tick in range(1, ticks + 1):
                self.world.set_goal(self._told + (target - self._told) * (tick / ticks))
                self.world.step(CONTROL_S)
            self._told = target

    def _frame(self, step: int) -> Frame:
        capture_ns = self._clock_ns + step * self.policy.dt_ns
        return Frame(self._camera.render(step)[0], step, capture_ns, capture_ns)


def _track(context: Any, name: str, tips: Vector) -> Any:
    types = importlib.import_module("wamprobe.api.types")
    way = tuple(types.Vec2(float(x), float(y)) for x, y, *_ in tips)
    moves = any((place - context.position).norm() >= STILL for place in way)
    return types.Trajectory2D(context.context_id, name, way if moves else (context.position,) * len(way))


class Question:
    """What wamprobe calls a benchmark: contexts, candidates, and what truly comes of each."""

    benchmark_id = ""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.horizon = bench.policy.section.video.frames

    def score(self, context: Any, trajectory: Any) -> float:
        """How near the tip ends to the context's goal: minus the distance [m]."""
        return -float((trajectory.final_state - context.goal).norm())

    def suite(self, contexts: int, first: int = FIRST_SCENE) -> Any:
        """wamprobe's intervention suite over that many scenes."""
        types = importlib.import_module("wamprobe.api.types")
        groups = [self._group(types, first + i, i) for i in range(contexts)]
        return types.InterventionSuite(self.benchmark_id, tuple(groups))

    def _group(self, types: Any, scene: int, turn: int) -> Any:
        raise NotImplementedError


class Motions(Question):
    """Candidates: the tip moves evenly along an axis, or stays. The goal is where one of the four would end."""

    benchmark_id = "dzedge-motions"

    def _group(self, types: Any, scene: int, turn: int) -> Any:
        tip = self.bench.restore(scene).tip
        actions = tuple(types.Action2D(name, types.Vec2(STEP_M * x, STEP_M * y)) for name, (x, y) in DIRECTIONS.items())
        start = types.Vec2(float(tip[0]), float(tip[1]))
        goal = start + actions[1 + turn % (len(actions) - 1)].delta * self.bench.policy.horizon
        return types.InterventionGroup(types.Context2D(str(scene), start, goal), actions)

    def rollout(self, context: Any, action: Any) -> Any:
        """The true future of a candidate."""
        return _track(context, action.name, self.truth(context, action)[0])

    def truth(self, context: Any, action: Any) -> tuple[Vector, NDArray[np.float32]]:
        """Tips, Shape (F, 3), [m], and latents of the true frames, Shape (F, K, C)."""
        return self.bench.play(self.chunk(self.bench.restore(int(context.context_id)), action), see=True)

    def chunk(self, table: Table, action: Any) -> Vector:
        """The targets of a candidate, Shape (H, J), [rad]."""
        steps = np.arange(1, self.bench.policy.horizon + 1)[:, None]
        places = table.tip + steps * (action.delta.x, action.delta.y, 0.0)
        wanted: Vector = np.array([solve(place) for place in places]) - solve(table.tip)
        return table.observation.state.positions + wanted


class Instructions(Question):
    """Candidates: reach each of the scene's cubes. The goal is one of the cubes."""

    benchmark_id = "dzedge-instructions"

    def __init__(self, bench: Bench, verb: str = "reach") -> None:
        super().__init__(bench)
        self.verb = verb

    def _group(self, types: Any, scene: int, turn: int) -> Any:
        table = self.bench.restore(scene)
        between = "over the" if self.verb != "reach" else "the"
        actions = tuple(types.Action2D(f"{self.verb} {between} {c} cube", types.Vec2(0.0, 0.0)) for c in table.cubes)
        places = list(table.cubes.values())
        goal = places[turn % len(places)]
        spots = [types.Vec2(float(place[0]), float(place[1])) for place in (table.tip, goal)]
        return types.InterventionGroup(types.Context2D(str(scene), *spots), actions)

    def rollout(self, context: Any, action: Any) -> Any:
        """Where the model's own actions lead under that instruction."""
        chunk = self.chunk(context, action, 0)
        return _track(context, action.name, self.bench.play(chunk.positions)[0])

    def chunk(self, context: Any, action: Any, seed: int) -> Any:
        """What the model imagines and wants done under that instruction; the world is then as it was before."""
        policy = self.bench.policy
        table = self.bench.restore(int(context.context_id), action.name)
        return policy.infer(table.observation, _nothing(policy), seed)


def _nothing(policy: WorldActionModel) -> ActionPrefix:
    return ActionPrefix(np.zeros((0, len(policy.section.joints))))


class Answer:
    """What wamprobe calls an adapter. predict: context, action and seed -> the tip's way, Shape (F, 2 or 3), [m]."""

    def __init__(self, name: str, predict: Callable[[Any, Any, int], Vector]) -> None:
        api = importlib.import_module("wamprobe.api.capabilities")
        self.capabilities = api.ModelCapabilities(name, api.FutureRepresentation.LATENTS, predicts_actions=True)
        self._predict = predict

    def predict_future(self, context: Any, action: Any, *, horizon: int, seed: int) -> Any:
        """The predicted future of one branch."""
        way = self._predict(context, action, seed)
        assert len(way) == horizon
        return _track(context, action.name, way)

    def close(self) -> None:
        """Nothing to let go of."""


def inverse(question: Motions) -> Answer:
    """Where the actions lead that the model reads from the true video."""
    bench = question.bench

    def predict(context: Any, action: Any, seed: int) -> Vector:
        future = question.truth(context, action)[1]
        table = bench.restore(int(context.context_id))
        read = bench.policy.infer_actions(table.observation, future, _nothing(bench.policy), seed)
        return bench.play(read.positions)[0]

    return Answer("inverse", predict)


def forward(question: Motions, told: bool = True) -> Answer:
    """What the model imagines when it is told the action, or, as a control, when it is not."""
    bench = question.bench

    def predict(context: Any, action: Any, seed: int) -> Vector:
        table = bench.restore(int(context.context_id))
        actions = question.chunk(table, action) if told else None
        return bench.policy.metres(bench.policy.imagine(table.observation, seed, actions))[:, 0, :3]

    return Answer("forward" if told else "untold", predict)


def dream(question: Instructions) -> Answer:
    """What the model imagines under an instruction."""
    bench = question.bench

    def predict(context: Any, action: Any, seed: int) -> Vector:
        return bench.policy.metres(question.chunk(context, action, seed).imagined)[:, 0, :3]

    return Answer("dream", predict)


def ask(answer: Any, question: Question, suite: Any) -> Figures:
    """wamprobe's verdict on one adapter. answer: an `Answer`, or an adapter of wamprobe's own."""
    evaluate = importlib.import_module("wamprobe.evaluation").evaluate
    summarize = importlib.import_module("wamprobe.stats").summarize
    result = evaluate(answer, question, suite)
    table, still = {}, any(action.name == "noop" for action in suite.groups[0].actions)
    for metric in METRICS:
        if metric == "noop_stability" and not still:
            continue  # wamprobe gives 0 where nobody was asked
        interval = summarize([context.metrics[metric] for context in result.context_results]).confidence_interval
        table[metric] = (interval.estimate, interval.lower, interval.upper)
    return table


def probes(bench: Bench, contexts: int) -> dict[str, Figures]:
    """All probes, the instructions' for a labelled verb and for a motion, and wamprobe's own two controls."""
    baselines = importlib.import_module("wamprobe.adapters.baselines")
    motions = Motions(bench)
    suite = motions.suite(contexts)
    answers = {
        "inverse": inverse(motions), "untold": forward(motions, told=False),
        "copy": baselines.CopyLastFrameAdapter(), "reversed": baselines.WrongDirectionAdapter(motions),
    }  # fmt: skip
    if bench.policy.follows_actions:
        answers = {"forward": forward(motions)} | answers
    out = {name: ask(answer, motions, suite) for name, answer in answers.items()}
    for verb in ("reach", "circle"):
        question = Instructions(bench, verb)
        out[f"dream {verb}"] = ask(dream(question), question, question.suite(contexts))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--contexts", type=int, default=40)
    parser.add_argument("--sampler", default="auto")
    parser.add_argument("--json", type=Path, help="where to write all figures besides")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    bundle = open_bundle(options.bundle, allow_test_key=True)
    policy = WorldActionModel(bundle, Machine.detect(1), camera=(HEIGHT, WIDTH), sampler=options.sampler)
    found = probes(Bench(policy), options.contexts)
    if options.json:
        options.json.write_text(json.dumps({"contexts": options.contexts, "probes": found}) + "\n")
    for probe, table in found.items():
        for metric, (mean, low, high) in table.items():
            log.info("%-13s %-40s %7.3f [%.3f, %.3f]", probe, metric, mean, low, high)


if __name__ == "__main__":
    main()
