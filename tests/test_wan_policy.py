"""The coupled layout on its way from torch to the robot: the same chunk from the bundle as from the torch modules,
through a window that slides."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dzedge import config
from dzedge.bundle import open_bundle
from dzedge.engine import Noise
from dzedge.errors import BundleError, PolicyError, UsageError
from dzedge.export import families, fit_wan, parity, stub
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.vae import Vae
from dzedge.export.model.wan_graphs import trunk_graphs
from dzedge.export.model.wan_grid import Grid
from dzedge.export.model.wan_policy import WanPolicy, config_of
from dzedge.export.model.wan_stream import Noisy, Stream
from dzedge.export.onnx import export_all
from dzedge.export.package import Release, package, samplers_of
from dzedge.export.recipe import read_recipe
from dzedge.export.source import Source
from dzedge.export.torch_policy import Trained, torch_policy
from dzedge.kernels.image import ImagePlan
from dzedge.minisign import SecretKey
from dzedge.policies import JointWorldModel, load_policy
from dzedge.types import ActionPrefix

ROOT = Path(__file__).parents[1]
TINY = Sizes(
    tokenizer="vae", image_height=36, image_width=48, cell=12, tokens=12, channels=4, encoder_width=4, decoder_width=4,
    frames=2, window=3, width=24, layers=2, heads=2,
)  # fmt: skip
"""A grid of 3 x 4 patches: an odd side, so that padding shows."""
RNG = np.random.default_rng(3)
MOMENTS = Moments(
    action_std=np.linspace(0.02, 0.2, 48).reshape(8, 6), state_mean=np.linspace(-0.2, 0.3, 6),
    state_std=np.linspace(0.5, 0.9, 6), residual_std=np.full((2, 12, 4), 0.3),
    action_low=np.full((8, 6), -4.0), action_high=np.full((8, 6), 4.0),
    latent_mean=RNG.normal(0.0, 0.5, (12, 4)), latent_std=RNG.uniform(0.4, 0.9, (12, 4)),
)  # fmt: skip
SOURCE = Source(frame_dt_ns=400_000_000)
NOTHING = ActionPrefix(np.zeros((0, 6)))
STEP = 6
"""Frames of the stub's camera between two that the model sees: 0.4 s."""
SEED = 5


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


class Made(NamedTuple):
    model: WanPolicy
    tokenizer: Vae
    files: dict[str, Path]
    bundle: Path


def pack(folder: Path, model: WanPolicy, tokenizer: Vae, files: dict[str, Path], **recipe: float) -> Path:
    secret = SecretKey.decode((ROOT / "export" / "test.key").read_text(), "test.key")
    about = Release("toy", 1, "wan_joint", samplers_of("wan_joint", recipe), max_prefix=3)
    package(
        folder, model, tokenizer, MOMENTS, about, secret, "2026-01-01T00:00:00Z", files=files, source=SOURCE
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model of which every parameter counts, and its bundle."""
    torch.manual_seed(1)
    with torch.no_grad():
        model, tokenizer = WanPolicy(TINY, MOMENTS).eval(), Vae(TINY).eval()
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn_like(parameter))
    folder = tmp_path_factory.mktemp("wan")
    files = export_all(families.cut(model, tokenizer), folder / "graphs")
    return Made(model, tokenizer, files, pack(folder / "toy.dzp", model, tokenizer, files, clean_share=0.25))


def running(bundle: Path, sampler: str = "auto") -> JointWorldModel:
    robot = config.load(config.default_path())
    sim, policy = msgspec.structs.replace(robot.sim, seed=SEED), msgspec.structs.replace(robot.policy, sampler=sampler)
    robot = msgspec.structs.replace(robot, sim=sim, policy=policy)
    found = load_policy(robot, open_bundle(bundle, allow_test_key=True))
    assert isinstance(found, JointWorldModel)
    found.reset(stub.ASKED)
    return found


class Twin:
    """The same robot in torch, by the modules that learn."""

    def __init__(self, made: Made) -> None:
        self.made, self.plan = made, ImagePlan(120, 160, None, TINY.image_height, TINY.image_width)
        self.stream = Stream(made.model, torch.tensor([words_of(stub.ASKED, TINY.words)]))

    def see(self, *numbers: int) -> None:
        for number in numbers:
            image = np.empty((3, TINY.image_height, TINY.image_width), np.float32)
            self.plan.run(stub.frame(number).image, image)
            time = (stub.frame(number).capture_ns - stub.frame(0).capture_ns) / SOURCE.frame_dt_ns
            self.stream.push(self.made.tokenizer.encoder(torch.from_numpy(image[None])), time)

    def noisy(self, chunk_id: int, committed: NDArray[np.float64] | None = None) -> Noisy:
        rng = Noise(SEED).of(chunk_id)
        noise = [torch.from_numpy(rng.standard_normal(shape, np.float32)) for shape in ((1, 2, 12, 4), (1, 8, 6))]
        state = torch.from_numpy(((stub.STATE - MOMENTS.state_mean) / MOMENTS.state_std)[None]).float()
        count = 0 if committed is None else len(committed)
        prefix, mask = torch.zeros(1, 8, 6), (torch.arange(8) < count).float()[None]
        if committed is not None:
            scaled = (committed - stub.STATE) / MOMENTS.action_std[:count]
            prefix[0, :count] = torch.from_numpy(scaled).float()
        return Noisy(self.stream, noise[0], noise[1], state, (prefix, mask))


def agree(found: Any, noisy: Noisy) -> None:
    """Chunk and imagination, in the model's own units, to 1e-4."""
    actions = (found.positions - stub.STATE) / MOMENTS.action_std
    np.testing.assert_allclose(actions, noisy.action[0], atol=1e-4)
    assert MOMENTS.latent_mean is not None and MOMENTS.latent_std is not None
    future = noisy.video[0].numpy() * MOMENTS.latent_std + MOMENTS.latent_mean
    np.testing.assert_allclose(found.imagined, future, atol=1e-4)


class TestGraphs:
    def test_parity(self, made: Made) -> None:
        found = parity.check(families.cut(made.model, made.tokenizer, seed=5), made.files)
        assert {p.graph for p in found} == {"text", "frame_encoder", "prefill", "joint_step", "frame_decoder"}
        assert all(p.scale > 1e-3 for p in found if p.graph != "frame_decoder"), "zeros prove nothing"

    def test_every_input_counts(self, made: Made) -> None:
        rng = np.random.default_rng(0)
        for graph in families.cut(made.model, made.tokenizer, seed=5)[2:4]:
            session = parity.session(made.files[graph.name])
            feed = {name: value.numpy() for name, value in graph.inputs.items()}
            assert {i.name for i in session.get_inputs()} == set(feed)
            before = session.run(None, feed)
            for name, value in feed.items():
                other = 1.0 - value if name in ("valid", "prefix_mask") else value + rng.normal(size=value.shape)
                after = session.run(None, {**feed, name: other.astype(np.float32)})
                moved = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
                assert moved > 1e-5, f"{graph.name}: {name}"

    def test_padding_is_nothing(self) -> None:
        grid, latent = Grid(3, 4), torch.randn(2, 5, 12, 4)
        cells = grid.cells(latent)
        assert cells.shape == (2, 5, 4, 4, 4) and not cells[..., 3, :].any()
        torch.testing.assert_close(cells[1, 2, :, 1, 3], latent[1, 2, 7])
        torch.testing.assert_close(grid.patches(cells), latent)

    def test_of_a_published_trunk_take_a_block_at_once(self) -> None:
        """The boundary serves imported checkpoints too: no padding, clean frames of a block together."""
        trunk = WanPolicy(TINY, MOMENTS).trunk
        trunk.config = replace(trunk.config, streaming=False)
        for graph in trunk_graphs(trunk, Grid(4, 4), torch.Generator().manual_seed(0), frames=2):
            out = graph.module(*graph.inputs.values())
            assert out[0].shape == {"prefill": (2, 2, 2, 4, 12), "joint_step": (1, 2, 16, 4)}[graph.name]

    def test_things_are_no_grid(self) -> None:
        with pytest.raises(UsageError, match="'structured': family wan_joint needs 'vae'"):
            config_of(Sizes())


class TestSizes:
    def test_shipped_recipe_is_a_few_million(self) -> None:
        recipe = read_recipe(ROOT / "export" / "recipes" / "wan_joint.toml")
        assert recipe.policy.family == "wan_joint"
        with torch.device("meta"):
            count = sum(p.numel() for p in families.LEARNERS["wan_joint"]().build(
                recipe.sizes, Moments.neutral(recipe.sizes)).parameters())  # fmt: skip
        assert count == 2_600_054

    @pytest.mark.parametrize(("name", "width", "layers", "heads"), [("0.1B", 640, 16, 5), ("0.45B", 1024, 24, 8)])
    def test_larger_ones_are_the_named_trunks(self, name: str, width: int, layers: int, heads: int) -> None:
        from dzedge.export.model.wan_config import preset

        ours, named = config_of(replace(TINY, width=width, layers=layers, heads=heads)), preset(name)
        for field in ("width", "layers", "heads", "feed", "hidden", "time_width"):
            assert getattr(ours, field) == getattr(named, field), field


@pytest.mark.parametrize("sampler", ["joint(4)", "joint(1)", "video_first(3,2)"])
class TestChunk:
    def test_is_the_torch_modules(self, made: Made, sampler: str) -> None:
        """Ten chunks: the window fills, slides, and is renumbered."""
        policy, twin = running(made.bundle, sampler), Twin(made)
        before = None
        for chunk_id in range(10):
            now = STEP * (chunk_id + 1)
            numbers = (now - STEP, now)
            chunk = policy.infer(stub.observation(*numbers), NOTHING, chunk_id)
            twin.see(*(numbers if chunk_id == 0 else numbers[1:]))
            noisy = twin.noisy(chunk_id)
            if policy.sampler.coupled:
                noisy.joint(policy.sampler.video_steps)
            else:
                noisy.see(policy.sampler.video_steps)
                noisy.act(policy.sampler.action_steps)
            agree(chunk, noisy)
            assert before is None or np.abs(chunk.imagined - before).max() > 1e-3
            before = chunk.imagined

    def test_at_an_uneven_pace(self, made: Made, sampler: str) -> None:
        """Chunks sooner and later than frames were apart in training, and after a pause longer than the window."""
        if sampler != "joint(1)":
            pytest.skip("pace and sampler have nothing to do with each other")
        policy, twin = running(made.bundle, sampler), Twin(made)
        for chunk_id, now in enumerate((0, 2, 4, 9, 11, 20, 26, 28, 34, 80, 86)):
            chunk = policy.infer(stub.observation(now), NOTHING, chunk_id)
            twin.see(now)
            noisy = twin.noisy(chunk_id)
            noisy.joint(1)
            agree(chunk, noisy)


class TestRuntime:
    def test_committed_actions_come_back_and_matter(self, made: Made) -> None:
        policy, twin = running(made.bundle), Twin(made)
        committed = stub.STATE + np.array([[0.01], [0.02], [0.03]])
        chunk = policy.infer(stub.observation(0, STEP), ActionPrefix(committed), 7)
        np.testing.assert_allclose(chunk.positions[:3], committed, atol=1e-5)
        twin.see(0, STEP)
        noisy = twin.noisy(7, committed)
        noisy.joint(4)
        agree(chunk, noisy)
        free = policy.infer(stub.observation(0, STEP), NOTHING, 7)
        assert np.abs(chunk.positions[3:] - free.positions[3:]).max() > 1e-6
        with pytest.raises(PolicyError, match="prefix of 4 actions: must be 0 to 3"):
            policy.infer(stub.observation(0, STEP), ActionPrefix(np.zeros((4, 6))), 8)

    def test_the_past_counts_until_a_reset(self, made: Made) -> None:
        fresh, old = running(made.bundle), running(made.bundle)
        old.infer(stub.observation(1, 7), NOTHING, 0)
        seen = stub.observation(13, 19)
        one, two = (policy.infer(seen, NOTHING, 1).positions for policy in (fresh, old))
        assert np.abs(one - two).max() > 1e-6
        old.reset(stub.ASKED)
        np.testing.assert_array_equal(old.infer(seen, NOTHING, 1).positions, one)
        again = old.infer(seen, NOTHING, 1).positions
        np.testing.assert_array_equal(again, one)  # nothing new was seen

    def test_time_that_goes_back_is_a_new_beginning(self, made: Made) -> None:
        policy = running(made.bundle)
        first = policy.infer(stub.observation(0, STEP), NOTHING, 1).positions
        policy.infer(stub.observation(60, 66), NOTHING, 2)
        np.testing.assert_array_equal(policy.infer(stub.observation(0, STEP), NOTHING, 1).positions, first)

    def test_words_count(self, made: Made) -> None:
        policy, seen = running(made.bundle), stub.observation(0, STEP)
        red = policy.infer(seen, NOTHING, 1).positions
        policy.reset(stub.ASKED.replace("red", "blue"))
        assert np.abs(policy.infer(seen, NOTHING, 1).positions - red).max() > 1e-6

    def test_a_frame_is_taken_in_once(self, made: Made) -> None:
        policy, runs = running(made.bundle), 0
        prefill = policy.prefill.run

        def counted() -> None:
            nonlocal runs
            runs += 1
            prefill()

        policy.prefill.run = counted  # type: ignore[method-assign]
        for chunk_id in range(5):
            policy.infer(stub.observation(STEP * chunk_id, STEP * (chunk_id + 1)), NOTHING, chunk_id)
        assert runs == 6


def test_the_torch_side_of_parity_decides_alike(made: Made) -> None:
    """Decisions as `dzedge export` judges by: begun anew, gone on with a little later, and of another time."""
    trained = Trained("wan_joint", made.model, made.tokenizer, MOMENTS, {"max_prefix": 3}, SOURCE)
    ours, torchs = running(made.bundle), torch_policy(trained, (120, 160), "joint(4)", SEED)
    committed = ActionPrefix(stub.STATE + np.array([[0.01], [0.02]]))
    for chunk_id, numbers in enumerate([(0, 6), (3, 9), (6, 12), (40, 46), (43, 49), (2, 8)]):
        if chunk_id in (0, 3):
            ours.reset(stub.ASKED)
            torchs.reset(stub.ASKED)
        found, wanted = (policy.infer(stub.observation(*numbers), committed, chunk_id) for policy in (ours, torchs))
        np.testing.assert_allclose(found.positions, wanted.positions, atol=1e-5)
        np.testing.assert_allclose(found.imagined, wanted.imagined, atol=1e-4)


class TestThreeUses:
    def test_imagine_is_the_video_of_a_chunk(self, made: Made) -> None:
        policy, seen = running(made.bundle), stub.observation(0, STEP)
        chunk = policy.infer(seen, NOTHING, 3)
        np.testing.assert_array_equal(policy.imagine(seen, 3), chunk.imagined)
        assert policy.decode(chunk.imagined).shape == (2, 36, 48, 3)
        assert policy.latent(seen.frames[-1]).shape == (12, 4)

    def test_infer_actions_from_a_finished_video(self, made: Made) -> None:
        policy, twin = running(made.bundle), Twin(made)
        future = RNG.normal(size=(2, 12, 4)).astype(np.float32)
        chunk = policy.infer_actions(stub.observation(0, STEP), future, NOTHING, 4)
        np.testing.assert_array_equal(chunk.imagined, future)
        twin.see(0, STEP)
        noisy = twin.noisy(4)
        noisy.video = made.model.scaled(torch.from_numpy(future))[None]
        noisy.act(policy.sampler.action_steps)
        np.testing.assert_allclose((chunk.positions - stub.STATE) / MOMENTS.action_std, noisy.action[0], atol=1e-4)
        other = policy.infer_actions(stub.observation(0, STEP), future + 1.0, NOTHING, 4)
        assert np.abs(other.positions - chunk.positions).max() > 1e-5

    def test_a_model_that_only_knows_one_time_offers_only_joint_sampling(self, made: Made, tmp_path: Path) -> None:
        bundle = pack(tmp_path / "coupled.dzp", made.model, made.tokenizer, made.files, clean_share=0.0)
        policy = running(bundle)
        assert policy.section.samplers == ("joint(4)", "joint(1)", "joint(8)")
        with pytest.raises(PolicyError, match="infer_actions: this model was trained with one time"):
            policy.infer_actions(stub.observation(0, STEP), np.zeros((2, 12, 4), np.float32), NOTHING)
        with pytest.raises(PolicyError, match=r"sampler 'video_first\(1,1\)': this model was trained with one time"):
            running(bundle, "video_first(1,1)")


def test_a_window_that_does_not_fit_is_named(made: Made, tmp_path: Path) -> None:
    files = {**made.files, "prefill": made.files["frame_encoder"]}
    graphs = tmp_path / "graphs"
    graphs.mkdir()
    for name, path in files.items():
        (graphs / f"{name}.fp32.onnx").write_bytes(path.read_bytes())
    from dzedge import bundle as bundles
    from dzedge.export.package import section

    variants = {
        name: [bundles.Variant(file=f"{name}.fp32.onnx", precision="fp32", ep="any", isa="any")] for name in files
    }
    about = Release("toy", 1, "wan_joint", max_prefix=3)
    secret = SecretKey.decode((ROOT / "export" / "test.key").read_text(), "test.key")
    bundles.pack(graphs, section(TINY, MOMENTS, about, variants, SOURCE), secret, "2026-01-01T00:00:00Z", "toy")
    with pytest.raises(BundleError, match="graph prefill: inputs are"):
        running(graphs)


def test_learner_is_registered() -> None:
    assert families.LEARNERS["wan_joint"] is fit_wan.WanLearner
