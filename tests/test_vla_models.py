"""The VLA trunks at toy sizes: what each may see, and that a token said alone is a token said in a row."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dzedge.export import checkpoint, families
from dzedge.export.episodes import Episodes
from dzedge.export.fit_vla import FEW_STEPS, DualLearner, FlowLearner, TokenLearner
from dzedge.export.model.blocks import velocity
from dzedge.export.model.dual_vla import DualVla
from dzedge.export.model.flow_vla import FlowVla
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.token_vla import BINS, START, TokenVla
from dzedge.export.model.wam import Wam
from dzedge.export.recipe import PolicyRecipe
from dzedge.export.windows import Windows

TOY = Sizes(width=32, layers=2, heads=2)
VLAS = (FlowVla, TokenVla, DualVla)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _awake(kind: type[Any], sizes: Sizes = TOY) -> Any:
    """A fresh trunk's heads are zero; random ones make every path matter."""
    torch.manual_seed(0)
    model = kind(sizes).eval()
    for name, part in model.named_modules():
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.2)
    nn.init.normal_(model.text.points, std=0.15)
    return model


def _inputs(batch: int = 2) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=rng)

    return {
        "latent": noise(TOY.tokens, TOY.channels), "before": noise(TOY.tokens, TOY.channels),
        "has_before": torch.ones(batch), "words": torch.tensor([words_of("reach the red cube", TOY.words)] * batch),
        "state": noise(TOY.joints), "action": noise(TOY.horizon, TOY.joints), "prefix": noise(TOY.horizon, TOY.joints),
        "mask": torch.zeros(batch, TOY.horizon), "time": torch.full((batch,), 0.3), "age": torch.full((batch,), 0.2),
        "tokens": torch.randint(0, BINS, (batch, TOY.horizon * TOY.joints), generator=rng),
    }  # fmt: skip


def _ask(model: nn.Module, x: dict[str, Tensor]) -> Tensor:
    """Clean actions, or logits of the tokens."""
    seen = (x["latent"], x["before"], x["has_before"])
    flow = (x["action"], x["prefix"] * x["mask"].unsqueeze(-1), x["mask"], x["time"])
    if isinstance(model, TokenVla):
        found: Tensor = model(seen, x["words"], x["state"], x["tokens"])[0]
    elif isinstance(model, DualVla):
        found = model(seen, x["words"], x["age"], x["state"], *flow)[0]
    else:
        found = model(seen, x["words"], x["state"], *flow)[0]
    return found


@pytest.mark.parametrize("kind", VLAS)
class TestAll:
    @pytest.mark.parametrize("name", ["latent", "before", "state"])
    def test_what_is_seen_and_felt_matters(self, kind: type[Any], name: str) -> None:
        model, x = _awake(kind), _inputs()
        changed = {**x, name: torch.stack([x[name][0], x[name][1] + 1.0])}
        one, two = _ask(model, x), _ask(model, changed)
        torch.testing.assert_close(one[0], two[0], rtol=0, atol=1e-5)
        assert (one[1] - two[1]).abs().max() > 1e-3

    def test_words_matter(self, kind: type[Any]) -> None:
        model, x = _awake(kind), _inputs()
        for asked in ("reach the blue cube", "press the red cube", ""):
            other = {**x, "words": torch.tensor([words_of(asked, TOY.words)] * 2)}
            assert (_ask(model, x) - _ask(model, other)).abs().max() > 1e-4, asked

    def test_a_missing_frame_is_not_seen(self, kind: type[Any]) -> None:
        model, x = _awake(kind), _inputs()
        gone = {**x, "has_before": torch.zeros(2)}
        one = _ask(model, gone)
        torch.testing.assert_close(one, _ask(model, {**gone, "before": x["before"] + 5.0}), rtol=0, atol=0)
        assert (one - _ask(model, x)).abs().max() > 1e-3

    def test_what_it_points_at(self, kind: type[Any]) -> None:
        model, x = _awake(kind), _inputs()
        text = model.text(x["words"])
        _, _, logits = model.context(x["latent"], x["before"], x["has_before"], text, *(
            [x["state"]] if model.context.with_state else []
        ))  # fmt: skip
        assert logits.shape == (2, TOY.tokens)
        assert (logits[:, -1] == 0).all(), "nothing named"
        assert logits[:, :-1].abs().max() > 0.1


def _flow(kind: type[Any]) -> Callable[[dict[str, Tensor]], Tensor]:
    model = _awake(kind)
    return lambda x: _ask(model, x)


@pytest.mark.parametrize("kind", [FlowVla, DualVla])
class TestPrefix:
    def test_committed_actions_come_out_as_they_went_in(self, kind: type[Any]) -> None:
        ask, x = _flow(kind), _inputs()
        bound = {**x, "mask": torch.zeros(2, TOY.horizon)}
        bound["mask"][:, :3] = 1.0
        chunk = ask(bound)
        torch.testing.assert_close(chunk[:, :3], x["prefix"][:, :3])
        assert (chunk[:, 3:] - ask(x)[:, 3:]).abs().max() > 1e-4, "and the rest heeds them"

    def test_noise_under_the_prefix_is_not_seen(self, kind: type[Any]) -> None:
        ask, x = _flow(kind), _inputs()
        x["mask"][:, :2] = 1.0
        other = x["action"].clone()
        other[:, :2] += 3.0
        torch.testing.assert_close(ask(x), ask({**x, "action": other}), rtol=0, atol=0)
        other[:, 2:] += 3.0
        assert (ask(x) - ask({**x, "action": other})).abs().max() > 1e-3

    def test_time_matters(self, kind: type[Any]) -> None:
        ask, x = _flow(kind), _inputs()
        assert (ask(x) - ask({**x, "time": torch.full((2,), 0.8)})).abs().max() > 1e-4


class TestDual:
    def test_the_slow_system_does_not_feel_the_joints(self) -> None:
        model, x = _awake(DualVla), _inputs()
        assert not hasattr(model.context, "state")
        assert model.context.length == 2 * TOY.tokens + 1
        features, _, _ = model.context(x["latent"], x["before"], x["has_before"], model.text(x["words"]))
        assert features.shape == (2, model.context.length, TOY.width)

    def test_age_matters(self) -> None:
        ask, x = _flow(DualVla), _inputs()
        assert (ask(x) - ask({**x, "age": torch.zeros(2)})).abs().max() > 1e-4


class TestTokens:
    def test_said_one_by_one_is_said_in_a_row(self) -> None:
        model, x = _awake(TokenVla), _inputs()
        stream = model.stream
        _, context, _ = model.context(
            x["latent"], x["before"], x["has_before"], model.text(x["words"]), x["state"]
        )  # fmt: skip
        whole = stream(x["tokens"], context)
        assert whole.shape == (2, stream.length, BINS)
        shape = (2, TOY.layers, TOY.heads, stream.length, TOY.head_width)
        past = (torch.full(shape, 7.0), torch.full(shape, -7.0))  # rows not said yet must not be seen
        last = torch.full((2,), START)
        for place in range(stream.length):
            logits, own = stream.say(last, torch.tensor([place]), context, past)
            torch.testing.assert_close(logits, whole[:, place], rtol=1e-4, atol=1e-4)
            for kept, row in zip(past, own, strict=True):
                assert row.shape == (*shape[:3], 1, shape[4])
                kept[:, :, :, place] = row[:, :, :, 0]
            last = x["tokens"][:, place]
        assert whole.std() > 0.1

    def test_a_token_hangs_on_those_before_it_alone(self) -> None:
        model, x = _awake(TokenVla), _inputs()
        changed = x["tokens"].clone()
        changed[:, 20] = (changed[:, 20] + 99) % BINS
        one, two = _ask(model, x), _ask(model, {**x, "tokens": changed})
        torch.testing.assert_close(one[:, :21], two[:, :21], rtol=0, atol=0)
        assert (one[:, 21] - two[:, 21]).abs().max() > 1e-3
        assert (one[:, 40:] - two[:, 40:]).abs().max() > 1e-4, "and it is remembered"

    def test_the_first_begins_with_a_word_of_its_own(self) -> None:
        model, x = _awake(TokenVla), _inputs()
        one = _ask(model, x)
        model.stream.tokens[START] *= -1.0
        assert (_ask(model, x)[:, 0] - one[:, 0]).abs().max() > 1e-3


class TestLearners:
    @pytest.fixture
    def windows(self, made_episodes: Callable[..., Episodes]) -> Windows:
        return Windows(made_episodes(TOY), TOY)

    def test_bins_hold_what_was_put_in(self, windows: Windows) -> None:
        learner = TokenLearner()
        learner.build(TOY, windows.moments)
        action = windows.batch(windows.by_kind[0]).action
        low, high = (torch.from_numpy(t).float() for t in (windows.moments.action_low, windows.moments.action_high))
        action = action.clamp(low, high)
        tokens = learner.tokens(action)
        assert tokens.min() >= 0
        assert tokens.max() < BINS
        assert len(tokens.unique()) > 50
        assert ((learner.values(tokens) - action).abs() <= (high - low) / BINS / 2 + 1e-5).all()
        assert torch.equal(learner.tokens(learner.values(tokens)), tokens), "a bin's middle is in it"

    def test_beyond_the_range_is_the_outermost_bin(self, windows: Windows) -> None:
        learner = TokenLearner()
        learner.build(TOY, windows.moments)
        far = torch.full((1, TOY.horizon, TOY.joints), 1e3)
        assert (learner.tokens(far) == BINS - 1).all()
        assert (learner.tokens(-far) == 0).all()

    def test_greedy_is_its_own_likeliest_word(self, windows: Windows) -> None:
        """Teacher-forced on what it said itself, it would say it again."""
        learner = TokenLearner()
        learner.build(TOY, windows.moments)
        model, batch = _awake(TokenVla), windows.batch(windows.by_kind[0][:3])
        chunk = learner.chunk(model, batch, torch.zeros_like(batch.action))
        tokens = learner.tokens(chunk)
        said, _ = model((batch.latent, batch.before, batch.has_history), batch.words, batch.state, tokens.flatten(1))
        assert torch.equal(said.argmax(-1), tokens.flatten(1))
        assert len(tokens.unique()) > 3

    @pytest.mark.parametrize("learner", [FlowLearner(), DualLearner()])
    def test_sampling_is_eulers_over_the_velocity(self, learner: FlowLearner, windows: Windows) -> None:
        """As the runtime samples: x += v / n from noise at t = 0."""
        model = _awake(FlowVla if type(learner) is FlowLearner else DualVla)
        batch = learner.batch(windows, windows.by_kind[0][:3], np.random.default_rng(0))
        noise = torch.randn(batch.action.shape, generator=torch.Generator().manual_seed(2))
        x = noise
        for step in range(FEW_STEPS):
            at = torch.full((3,), step / FEW_STEPS)
            seen = {"latent": batch.latent, "before": batch.before, "has_before": batch.has_history}
            if isinstance(model, DualVla):
                seen = {"latent": batch.slow, "before": batch.slow_before, "has_before": batch.slow_history}
            asked = {**_inputs(3), **seen, "words": batch.words, "state": batch.state, "action": x, "time": at}
            x = x + velocity(_ask(model, {**asked, "age": batch.slow_age}), x, at) / FEW_STEPS
        torch.testing.assert_close(learner.chunk(model, batch, noise), x, rtol=1e-4, atol=1e-4)

    def test_a_slow_system_learns_with_features_of_every_age(self, windows: Windows) -> None:
        pick = windows.by_kind[0]
        pick = np.repeat(pick[pick - windows.episodes.start[pick] > 6], 4)
        batch = DualLearner().batch(windows, pick, np.random.default_rng(0))
        assert sorted({round(age, 3) for age in batch.slow_age.tolist()}) == [0.0, 0.1, 0.2, 0.3, 0.4]
        assert not FlowLearner().batch(windows, pick, np.random.default_rng(0)).slow_age.any()

    def test_the_committed_are_not_counted(self, windows: Windows) -> None:
        recipe = PolicyRecipe(max_prefix=3, prefix_share=1.0, grounding=0.0, start_share=0.0)
        batch = windows.batch(windows.by_kind[0][:16])
        late = torch.zeros_like(batch.action_mask)
        late[:, 0] = 1.0  # the first action alone is known, and always committed
        for name in ("flow_vla", "token_vla", "dual_vla"):
            learner = families.LEARNERS[name]()
            model = learner.build(TOY, windows.moments)
            found = [
                learner.losses(model, recipe, replace(batch, action_mask=mask), 16, checkpoint.torch_seed(1))["action"]
                for mask in (late, batch.action_mask)
            ]
            assert found[0].item() == 0.0, name
            assert found[1].item() > 0.0, name


@pytest.mark.parametrize("name", sorted(set(families.LEARNERS) - {"wan_joint"}))
def test_a_trunk_makes_its_tensors_where_its_weights_are(name: str, made_episodes: Callable[..., Episodes]) -> None:
    """As on a GPU: with another default device, a tensor made without one would be elsewhere."""
    model, x = families.LEARNERS[name]().build(TOY, Moments.neutral(TOY)), _inputs()
    with torch.device("meta"):
        if isinstance(model, Wam):
            zero, slots = model.text.table.new_zeros(2), x["latent"].new_zeros(2, TOY.window)
            text, window = model.text(x["words"]), model.window(torch.stack([x["latent"], x["before"]], dim=1))
            video = x["latent"].unsqueeze(1).expand(-1, TOY.frames, -1, -1)
            found, rows, _ = model.video(video, x["latent"], window, slots, slots + 1, text, zero, zero.long())
            found = found.sum() + model.action(x["action"], x["prefix"], x["mask"], x["state"], rows, x["time"]).sum()
        else:
            found = _ask(model, x)
    assert found.device.type == "cpu"
