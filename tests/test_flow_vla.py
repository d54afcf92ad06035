"""The flow VLA family, against its arithmetic done again in NumPy on the stub's weights."""

import numpy as np
import pytest
from numpy.typing import NDArray

from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Machine
from dzedge.errors import PolicyError
from dzedge.export import stub
from dzedge.export.stub import ASKED, STATE, observation
from dzedge.policies import FlowVla
from dzedge.types import ActionPrefix, Frame, Observation

NOTHING = ActionPrefix(np.zeros((0, stub.J)))
SEED = 5


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = stub.write(tmp_path_factory.mktemp("bundle") / "flow.dzp", stub.section("flow_vla"))
    return open_bundle(folder, allow_test_key=True)


def policy(opened: Bundle, sampler: str = "auto", seed: int = SEED) -> FlowVla:
    made = FlowVla(opened, Machine("cpu", "avx2", 1), camera=(120, 160), sampler=sampler, seed=seed)
    made.reset(ASKED)
    return made


W = {name: array.astype(np.float64) for name, array in stub.weights().items()}


def latent(seen: Frame) -> NDArray[np.float64]:
    mean = (seen.image / 127.5 - 1.0).mean(axis=(0, 1))  # exact area resize keeps the mean
    return (mean @ W["w_image"]).reshape(stub.K, stub.C)


def by_hand(observed: Observation, steps: int, prefix: NDArray[np.float64], chunk_id: int) -> NDArray[np.float64]:
    """Positions, Shape (H, J), in plain NumPy."""
    generator = np.random.Generator(np.random.Philox(key=np.array([SEED, chunk_id], np.uint64)))
    action = generator.standard_normal((stub.H, stub.J), dtype=np.float32).astype(np.float64)
    words = np.zeros(stub.W)
    words[:4] = [stub.VOCABULARY[word] for word in ASKED.split()]
    rows = (latent(observed.frames[-1]) @ W["w_key"]).sum() + (words @ W["w_text"] @ W["w_words"]).sum()
    rows += ((STATE - 0.1) / 0.7 @ W["w_body"]).sum()
    if len(observed.frames) > 1:
        rows += (latent(observed.frames[-2]) @ W["w_value"]).sum()
    scaled, mask = np.zeros_like(action), np.zeros((stub.H, 1))
    scaled[: len(prefix)] = (prefix - STATE) / 0.02
    mask[: len(prefix)] = 1.0
    for t in np.arange(steps) / steps:
        free = 0.5 * rows - action + t
        action += (mask * (scaled - action) / (1 - t) + (1 - mask) * free) / steps
    return STATE + 0.02 * action


@pytest.mark.parametrize(("sampler", "steps"), [("auto", 4), ("euler(1)", 1), ("euler(7)", 7)])
@pytest.mark.parametrize("committed", [0, 1, 3])
@pytest.mark.parametrize("numbers", [(0,), (0, 3)])
def test_agrees_with_the_sum_by_hand(
    opened: Bundle, sampler: str, steps: int, committed: int, numbers: tuple[int, ...]
) -> None:
    prefix = STATE + 0.01 * np.arange(1, committed + 1)[:, None] * np.ones(stub.J)
    found = policy(opened, sampler).infer(observation(*numbers), ActionPrefix(prefix), 7)
    np.testing.assert_allclose(found.positions, by_hand(observation(*numbers), steps, prefix, 7), atol=2e-6)
    np.testing.assert_allclose(found.positions[:committed], prefix, atol=1e-6)


def test_steps_share_one_context(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(opened, "euler(9)")
    ran: list[str] = []
    for graph in (made.encoder, made.context.graph, made.action):
        monkeypatch.setattr(graph, "run", lambda name=graph.name, run=graph.run: ran.append(name) or run())
    made.infer(observation(0, 3), NOTHING, 0)
    assert ran == ["frame_encoder"] * 2 + ["context"] + ["action_step"] * 9


def test_one_frame_after_two_leaves_nothing_of_the_second(opened: Bundle) -> None:
    made = policy(opened)
    alone = made.infer(observation(3), NOTHING, 0).positions
    both = made.infer(observation(0, 3), NOTHING, 0).positions
    assert not np.array_equal(alone, both)
    np.testing.assert_array_equal(made.infer(observation(3), NOTHING, 0).positions, alone)


@pytest.mark.parametrize("text", ["euler", "euler(0)", "euler(100)", "joint(4)", "greedy", "video_first(1,1)"])
def test_another_sampler_is_refused(opened: Bundle, text: str) -> None:
    with pytest.raises(PolicyError, match=r"must be euler\(n\), 1 to 99 steps"):
        policy(opened, text)
