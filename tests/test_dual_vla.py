"""The dual-system VLA family: its arithmetic done again in NumPy, and when its slow system looks."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Machine
from dzedge.errors import PolicyError
from dzedge.export import stub
from dzedge.export.stub import ASKED, STATE, frame, observation
from dzedge.policies import DualVla
from dzedge.policies.dual_vla import SLOW_NS
from dzedge.types import ActionPrefix, Observation

NOTHING = ActionPrefix(np.zeros((0, stub.J)))
SEED = 5
W = {name: array.astype(np.float64) for name, array in stub.weights().items()}


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = stub.write(tmp_path_factory.mktemp("bundle") / "dual.dzp", stub.section("dual_vla"))
    return open_bundle(folder, allow_test_key=True)


def policy(opened: Bundle, sampler: str = "auto", seed: int = SEED) -> DualVla:
    made = DualVla(opened, Machine("cpu", "avx2", 1), camera=(120, 160), sampler=sampler, seed=seed)
    made.reset(ASKED)
    return made


def features(observed: Observation) -> float:
    def latent(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return ((image / 127.5 - 1.0).mean(axis=(0, 1)) @ W["w_image"]).reshape(stub.K, stub.C)

    words = np.zeros(stub.W)
    words[:4] = [stub.VOCABULARY[word] for word in ASKED.split()]
    total = (latent(observed.frames[-1].image) @ W["w_now"]).sum() + (words @ W["w_text"]).sum()
    if len(observed.frames) > 1:
        total += (latent(observed.frames[-2].image) @ W["w_old"]).sum()
    return float(total)


def by_hand(
    looked: Observation, age_s: float, steps: int, prefix: NDArray[np.float64], chunk_id: int
) -> NDArray[np.float64]:
    """Positions, Shape (H, J), from the features of `looked` when they are `age_s` old."""
    generator = np.random.Generator(np.random.Philox(key=np.array([SEED, chunk_id], np.uint64)))
    action = generator.standard_normal((stub.H, stub.J), dtype=np.float32).astype(np.float64)
    goal = features(looked) + ((STATE - 0.1) / 0.7 @ W["w_body"]).sum() + age_s
    scaled, mask = np.zeros_like(action), np.zeros((stub.H, 1))
    scaled[: len(prefix)] = (prefix - STATE) / 0.02
    mask[: len(prefix)] = 1.0
    for t in np.arange(steps) / steps:
        action += (mask * (scaled - action) / (1 - t) + (1 - mask) * (goal - action + t)) / steps
    return STATE + 0.02 * action


@pytest.mark.parametrize(("sampler", "steps"), [("auto", 4), ("euler(1)", 1)])
@pytest.mark.parametrize("committed", [0, 3])
@pytest.mark.parametrize("numbers", [(0,), (0, 3)])
def test_agrees_with_the_sum_by_hand(
    opened: Bundle, sampler: str, steps: int, committed: int, numbers: tuple[int, ...]
) -> None:
    prefix = STATE + 0.01 * np.arange(1, committed + 1)[:, None] * np.ones(stub.J)
    found = policy(opened, sampler).infer(observation(*numbers), ActionPrefix(prefix), 7)
    np.testing.assert_allclose(found.positions, by_hand(observation(*numbers), 0.0, steps, prefix, 7), atol=2e-6)
    np.testing.assert_allclose(found.positions[:committed], prefix, atol=1e-6)


class TestSlowSystem:
    """Frames come every 66.67 ms: the sixth after a look is the first that is 400 ms later."""

    def test_old_features_are_used_with_their_age_then_renewed(self, opened: Bundle) -> None:
        made = policy(opened)
        for number in range(3, 17):
            found = made.infer(observation(number - 3, number), NOTHING, number).positions
            looked = number - (number - 3) % 6
            seen = observation(looked - 3, looked)
            age_s = (frame(number).capture_ns - frame(looked).capture_ns) * 1e-9
            expected = by_hand(seen, age_s, 4, np.zeros((0, 6)), number)
            np.testing.assert_allclose(found, expected, atol=2e-6, err_msg=f"frame {number}")

    def looks(self, made: DualVla, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Grows by one whenever the slow system runs."""
        ran: list[int] = []
        run = made.features.run
        monkeypatch.setattr(made.features, "run", lambda: ran.append(1) or run())
        return ran

    def test_it_runs_once_in_slow_ns(self, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        made = policy(opened)
        ran = self.looks(made, monkeypatch)
        counts = []
        for number in (3, 4, 7, 8, 9, 14, 15):
            made.infer(observation(number), NOTHING, number)
            counts.append(len(ran))
        assert counts == [1, 1, 1, 1, 2, 2, 3]

    def test_a_new_task_is_looked_at_at_once(self, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        made = policy(opened)
        ran = self.looks(made, monkeypatch)
        before = made.infer(observation(3), NOTHING, 0).positions
        made.reset("press the blue cube")
        other = made.infer(observation(3), NOTHING, 0).positions
        assert len(ran) == 2
        assert not np.array_equal(before, other)

    def test_a_refused_task_keeps_the_old_features(self, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        made = policy(opened)
        before = made.infer(observation(3), NOTHING, 0).positions
        ran = self.looks(made, monkeypatch)
        with pytest.raises(PolicyError):
            made.reset("juggle")
        np.testing.assert_array_equal(made.infer(observation(3), NOTHING, 0).positions, before)
        assert ran == []

    def test_a_clock_that_went_back_makes_it_look(self, opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
        made = policy(opened)
        ran = self.looks(made, monkeypatch)
        made.infer(observation(9), NOTHING, 0)
        made.infer(observation(3), NOTHING, 1)
        assert len(ran) == 2

    @pytest.mark.parametrize(("slow_ns", "renewed"), [(0, 3), (60_000_000, 3), (70_000_000, 2), (None, 1)])
    def test_the_manifest_says_how_slow(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_ns: int | None, renewed: int
    ) -> None:
        section = msgspec.structs.replace(stub.section("dual_vla"), slow_ns=slow_ns)
        made = policy(open_bundle(stub.write(tmp_path / "slow.dzp", section), allow_test_key=True))
        assert made.slow_ns == (SLOW_NS if slow_ns is None else slow_ns)
        ran = self.looks(made, monkeypatch)
        for number in (3, 4, 5):
            made.infer(observation(number), NOTHING, number)
        assert len(ran) == renewed


@pytest.mark.parametrize("text", ["euler(0)", "joint(4)", "greedy"])
def test_another_sampler_is_refused(opened: Bundle, text: str) -> None:
    with pytest.raises(PolicyError, match=r"must be euler\(n\), 1 to 99 steps"):
        policy(opened, text)
