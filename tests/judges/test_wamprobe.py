"""wamprobe, opt-in: is what the shipped model ties together tied together in the world?

The bars are on means over few contexts; `python -m dzedge.export.yardstick_wamprobe` gives intervals.
"""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from dzedge.bundle import open_bundle
from dzedge.engine import Machine
from dzedge.export.yardstick_wamprobe import Answer, Bench, Instructions, Motions, ask, dream, forward, inverse
from dzedge.policies import WorldActionModel

pytestmark = pytest.mark.skipif(find_spec("wamprobe") is None, reason="not installed: pip install wamprobe==0.1.0")
BUNDLE = Path(__file__).resolve().parents[2] / "bundles" / "wam-nano.dzp"
CONTEXTS = 8


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    opened = open_bundle(BUNDLE, allow_test_key=True)
    yield Bench(WorldActionModel(opened, Machine.detect(1), camera=(120, 160)))


def mean(figures: dict[str, tuple[float, float, float]]) -> dict[str, float]:
    return {metric: values[0] for metric, values in figures.items()}


class TestBench:
    def test_a_scene_is_restored_bit_for_bit(self, bench: Bench) -> None:
        first = bench.restore(500_003)
        state = bench.world.fingerprint()
        bench.play(first.observation.state.positions + np.full((4, 6), 0.1))
        assert bench.world.fingerprint() != state
        again = bench.restore(500_003)
        assert bench.world.fingerprint() == state
        assert again.observation.frames[-1].image.tobytes() == first.observation.frames[-1].image.tobytes()
        bench.restore(500_004)
        assert bench.world.fingerprint() != state

    def test_candidates_lead_where_they_say(self, bench: Bench) -> None:
        question = Motions(bench)
        context, actions = (getattr(question.suite(1).groups[0], name) for name in ("context", "actions"))
        ends = {action.name: question.rollout(context, action).final_state - context.position for action in actions}
        assert ends["noop"].norm() == 0.0
        assert ends["left"].y > 0.03 and ends["right"].y < -0.03
        assert ends["away"].x > 0.03 and ends["near"].x < -0.03


class TestInverse:
    def test_reads_the_actions_from_the_true_video(self, bench: Bench) -> None:
        question = Motions(bench)
        found = mean(ask(inverse(question), question, question.suite(CONTEXTS)))
        assert found["counterfactual_direction_accuracy"] > 0.9
        assert found["action_dependence"] > 0.75
        assert found["action_dependence_permutation_p_value"] < 0.1
        assert found["state_fde"] < 0.02

    def test_another_branchs_video_leads_elsewhere(self, bench: Bench) -> None:
        question = Motions(bench)
        honest = inverse(question)

        def swapped(context, action, seed):
            found = honest.predict_future(context, type(action)("swapped", action.delta * -1.0), horizon=4, seed=seed)
            return np.array([place.to_list() for place in found.states])

        assert mean(ask(Answer("swapped", swapped), question, question.suite(4)))["state_fde"] > 0.05


class TestForward:
    def test_imagines_what_the_action_does(self, bench: Bench) -> None:
        question = Motions(bench)
        found = mean(ask(forward(question), question, question.suite(CONTEXTS)))
        assert found["counterfactual_direction_accuracy"] > 0.9
        assert found["action_dependence"] > 0.75
        assert found["action_dependence_permutation_p_value"] < 0.1
        assert found["state_fde"] < 0.02

    def test_without_telling_it_imagines_the_same(self, bench: Bench) -> None:
        question = Motions(bench)
        found = mean(ask(forward(question, told=False), question, question.suite(4)))
        assert found["action_dependence"] == 0.0 and found["action_dependence_permutation_p_value"] == 1.0


class TestDream:
    @pytest.mark.parametrize("verb", ["reach", "circle"])
    def test_it_does_what_it_imagines(self, bench: Bench, verb: str) -> None:
        question = Instructions(bench, verb)
        found = mean(ask(dream(question), question, question.suite(CONTEXTS)))
        assert found["counterfactual_direction_accuracy"] > 0.9
        assert found["action_dependence"] > 0.75
        assert found["state_fde"] < 0.03
        assert found["candidate_ranking_spearman"] > 0.7

    def test_what_another_instruction_makes_it_imagine_is_not_what_it_does(self, bench: Bench) -> None:
        question = Instructions(bench)
        suite = question.suite(4)
        names = {group.context.context_id: [action.name for action in group.actions] for group in suite.groups}
        honest = dream(question)

        def astray(context, action, seed):
            asked = names[context.context_id]
            other = asked[(asked.index(action.name) + 1) % len(asked)]
            found = honest.predict_future(context, type(action)(other, action.delta), horizon=4, seed=seed)
            return np.array([place.to_list() for place in found.states])

        wrong, right = (mean(ask(a, question, suite)) for a in (Answer("astray", astray), honest))
        assert wrong["state_fde"] > 3.0 * right["state_fde"]
        assert wrong["counterfactual_direction_accuracy"] < right["counterfactual_direction_accuracy"] - 0.1
