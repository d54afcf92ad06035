"""The token VLA family, against its arithmetic done again in NumPy on the stub's weights."""

from pathlib import Path

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from dzedge.bundle import Bundle, Section, open_bundle
from dzedge.engine import Machine
from dzedge.errors import BundleError, PolicyError
from dzedge.export import stub
from dzedge.export.stub import ASKED, STATE, observation
from dzedge.policies import TokenVla
from dzedge.policies.sampler import TokenSampler
from dzedge.policies.token_vla import Bins
from dzedge.types import ActionPrefix, Observation

NOTHING = ActionPrefix(np.zeros((0, stub.J)))
SEED, LOW, WIDTH = 5, -0.3, 0.8 / 256
W = {name: array.astype(np.float64) for name, array in stub.weights().items()}


def write(folder: Path, bias: float = 0.0) -> Bundle:
    return open_bundle(stub.write(folder, stub.section("token_vla"), bias), allow_test_key=True)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write(tmp_path_factory.mktemp("bundle") / "token.dzp")


def policy(opened: Bundle, sampler: str = "auto", seed: int = SEED) -> TokenVla:
    made = TokenVla(opened, Machine("cpu", "avx2", 1), camera=(120, 160), sampler=sampler, seed=seed)
    made.reset(ASKED)
    return made


def plan(observed: Observation) -> float:
    def latent(image: NDArray[np.uint8]) -> NDArray[np.float64]:
        return ((image / 127.5 - 1.0).mean(axis=(0, 1)) @ W["w_image"]).reshape(stub.K, stub.C)

    words = np.zeros(stub.W)
    words[:4] = [stub.VOCABULARY[word] for word in ASKED.split()]
    rows = (latent(observed.frames[-1].image) @ W["w_key"]).sum() + (words @ W["w_text"] @ W["w_words"]).sum()
    rows += ((STATE - 0.1) / 0.7 @ W["w_body"]).sum()
    if len(observed.frames) > 1:
        rows += (latent(observed.frames[-2].image) @ W["w_value"]).sum()
    return float(0.5 * rows)


def by_hand(observed: Observation, temperature: float, prefix: NDArray[np.float64], chunk_id: int) -> list[int]:
    """All H * J tokens of a chunk in plain Python."""
    chance = np.random.Generator(np.random.Philox(key=np.array([SEED, chunk_id], np.uint64))).random(stub.H * stub.J)
    forced = [int(np.argmin(abs(LOW + (np.arange(256) + 0.5) * WIDTH - x))) for x in (prefix - STATE).flat]
    seen, rows, token, tokens = plan(observed), [], 256, []
    for position in range(stub.H * stub.J):
        said = token / 256 + 0.1 * position
        memory = sum(rows) * 0.5 / (stub.H * stub.J)
        rows.append(said)
        target = 127.5 + 100 * np.sin(seen + memory + said)
        logits = -0.05 * (np.arange(256) - target) ** 2
        token = int(logits.argmax())
        if temperature:
            share = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
            token = int((share.cumsum() <= chance[position]).sum())
        token = forced[position] if position < len(forced) else token
        tokens.append(token)
    return tokens


def committed(count: int) -> NDArray[np.float64]:
    return STATE + 0.0107 * np.arange(1, count + 1)[:, None] * np.linspace(-1.0, 1.0, stub.J)


@pytest.mark.parametrize(("sampler", "temperature"), [("auto", 0.0), ("sample(1.0)", 1.0), ("sample(0.3)", 0.3)])
@pytest.mark.parametrize("count", [0, 1, 3])
@pytest.mark.parametrize("numbers", [(0,), (0, 3)])
def test_agrees_with_the_sum_by_hand(
    opened: Bundle, sampler: str, temperature: float, count: int, numbers: tuple[int, ...]
) -> None:
    found = policy(opened, sampler).infer(observation(*numbers), ActionPrefix(committed(count)), 7)
    tokens = np.array(by_hand(observation(*numbers), temperature, committed(count), 7))
    positions = STATE + LOW + (tokens.reshape(stub.H, stub.J) + 0.5) * WIDTH
    np.testing.assert_allclose(found.positions[count:], positions[count:], atol=1e-9)
    np.testing.assert_array_equal(found.positions[:count], committed(count))  # as they came, not their bins
    assert len(set(tokens.tolist())) > 20


def test_greedy_is_the_same_for_every_chunk_and_sampling_is_not(opened: Bundle) -> None:
    greedy, warm = policy(opened), policy(opened, "sample(1.0)")

    def ask(made: TokenVla, chunk_id: int) -> NDArray[np.float64]:
        return made.infer(observation(0, 3), NOTHING, chunk_id).positions

    np.testing.assert_array_equal(ask(greedy, 1), ask(greedy, 2))
    np.testing.assert_array_equal(ask(greedy, 1), ask(policy(opened, seed=6), 1))
    first = ask(warm, 1)
    assert not np.array_equal(first, ask(warm, 2))
    assert not np.array_equal(first, ask(policy(opened, "sample(1.0)", seed=6), 1))
    np.testing.assert_array_equal(first, ask(warm, 1))


def test_what_was_committed_changes_what_follows(opened: Bundle) -> None:
    made = policy(opened)
    free = made.infer(observation(0, 3), NOTHING, 0).positions
    bound = made.infer(observation(0, 3), ActionPrefix(committed(2)), 0).positions
    assert not np.array_equal(free[2:], bound[2:])
    np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, free)


def test_every_token_is_a_pass_on_one_context(opened: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    made = policy(opened)
    ran: list[tuple[str, int, int]] = []

    def watch(name: str) -> None:
        graph = made.context.graph if name == "context" else made.token
        run, token = graph.run, made.token.inputs
        monkeypatch.setattr(
            graph, "run", lambda: ran.append((name, int(token["token"][0]), int(token["position"][0]))) or run()
        )

    watch("context")
    watch("token_step")
    made.infer(observation(0, 3), NOTHING, 0)
    assert [name for name, _, _ in ran] == ["context"] + ["token_step"] * 48
    assert ran[1][1:] == (256, 0)
    assert [position for _, _, position in ran[1:]] == list(range(48))


class TestBroken:
    """Logits that are not numbers must not become actions: argmax would make good-looking ones of them."""

    @pytest.mark.parametrize("sampler", ["greedy", "sample(1.0)"])
    def test_nan_logits_give_nan(self, tmp_path: Path, sampler: str) -> None:
        made = policy(write(tmp_path / "bad.dzp", float("nan")), sampler)
        found = made.infer(observation(0, 3), ActionPrefix(committed(1)), 0).positions
        np.testing.assert_array_equal(found[:1], committed(1))
        assert np.isnan(found[1:]).all()

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_one_bad_logit_is_enough_from_there_on(
        self, opened: Bundle, monkeypatch: pytest.MonkeyPatch, value: float
    ) -> None:
        made = policy(opened)
        good = made.infer(observation(0, 3), NOTHING, 0).positions
        run, logits = made.token.run, made.token.outputs["logits"]

        def spoil() -> None:
            run()
            if made.token.inputs["position"][0] == 20:
                logits[0, 200] = value

        with monkeypatch.context() as patch:
            patch.setattr(made.token, "run", spoil)
            found = made.infer(observation(0, 3), NOTHING, 0).positions.reshape(-1)
        np.testing.assert_array_equal(found[:20], good.reshape(-1)[:20])
        assert np.isnan(found[20:]).all()
        np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, good)

    def test_a_bad_row_does_not_outlive_its_chunk(self, opened: Bundle) -> None:
        made = policy(opened)
        good = made.infer(observation(0, 3), NOTHING, 0).positions
        made.token.inputs["past_key"].fill(np.nan)  # masked, but nan * 0 is nan
        np.testing.assert_array_equal(made.infer(observation(0, 3), NOTHING, 0).positions, good)


class TestBins:
    bins = Bins(stub.section("token_vla"))

    def test_a_bin_holds_what_is_nearest_to_its_centre(self) -> None:
        every = np.arange(256).repeat(48).reshape(256, 48)
        for tokens in every:
            offsets = self.bins.centres(tokens)
            for shift in (-0.49, 0.0, 0.49):
                assert self.bins.tokens(offsets + shift * WIDTH) == tokens.tolist()
        assert self.bins.tokens(offsets - 0.51 * WIDTH) == [254] * 48

    def test_row_major(self) -> None:
        tokens = np.arange(48)
        centres = self.bins.centres(tokens)
        np.testing.assert_allclose(centres[1, 2], LOW + (8 + 0.5) * WIDTH)
        assert self.bins.tokens(centres[:2]) == list(range(12))

    def test_beyond_the_range_is_the_last_bin(self) -> None:
        assert self.bins.tokens(np.array([[-9.0, 9.0, 0.5, -0.3, 0.4999, -0.2999]])) == [0, 255, 255, 0, 255, 0]

    @pytest.mark.parametrize(
        ("low", "high", "words"),
        [
            (np.full((8, 6), 0.5), np.full((8, 6), 0.5), r"action_high - action_low: 0\.0 must be positive"),
            (np.full((8, 6), 0.5), np.full((8, 6), -0.5), r"action_high - action_low: -1\.0 must be positive"),
            (np.full((8, 5), -0.5), np.full((8, 6), 0.5), r"action_low: shape \(8, 5\)"),
            (np.full((8, 6), -0.5), np.full((7, 6), 0.5), r"action_high - action_low|shape \(7, 6\)"),
        ],
    )
    def test_ranges_that_make_no_sense(self, low: NDArray[np.float64], high: NDArray[np.float64], words: str) -> None:
        with pytest.raises(BundleError, match=words):
            Bins(ranged(stub.section("token_vla"), low, high))

    def test_an_absolute_gripper_ignores_the_anchor(self, tmp_path: Path, opened: Bundle) -> None:
        section = msgspec.structs.replace(stub.section("token_vla"), absolute_joints=("gripper",))
        made = policy(open_bundle(stub.write(tmp_path / "grip.dzp", section), allow_test_key=True))
        found, other = (p.infer(observation(0), NOTHING, 0).positions for p in (made, policy(opened)))
        np.testing.assert_array_equal(found[:, :5], other[:, :5])
        np.testing.assert_allclose(found[:, 5], other[:, 5] - STATE[5], atol=1e-12)


def ranged(section: Section, low: NDArray[np.float64], high: NDArray[np.float64]) -> Section:
    table = msgspec.to_builtins(section.statistics) | {"action_low": low.tolist(), "action_high": high.tolist()}
    return msgspec.structs.replace(section, statistics=msgspec.convert(table, type(section.statistics)))


class TestSampler:
    @pytest.mark.parametrize(
        ("text", "temperature"), [("greedy", 0.0), ("sample(0.1)", 0.1), ("sample(1)", 1.0), ("sample(2.00)", 2.0)]
    )
    def test_parse(self, text: str, temperature: float) -> None:
        assert TokenSampler.parse(text) == TokenSampler(temperature)

    @pytest.mark.parametrize(
        "text", ["", "auto", "sample", "sample()", "sample(0)", "sample(0.05)", "sample(2.01)", "euler(4)", "flash(1)"]
    )
    def test_refused(self, opened: Bundle, text: str) -> None:
        with pytest.raises(PolicyError, match=r"must be greedy or sample\(T\), T in \[0\.1, 2\]"):
            TokenSampler.parse(text)
