"""Any LeRobot dataset: its words, camera, rate, units and joints; and a training on nothing but them, to a policy."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dzedge import config
from dzedge.bundle import open_bundle
from dzedge.errors import PolicyError, UsageError
from dzedge.export import data, episodes, families, fit_wam, footage, stub, train
from dzedge.export.dataset import Dataset, Writer
from dzedge.export.episodes import LABELLED, Episodes
from dzedge.export.making import Wanted
from dzedge.export.model.graphs import Graph
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import VOCABULARY, PlainTextEncoder, vocabulary_of, words_of
from dzedge.export.model.vae import Vae
from dzedge.export.recipe import DataRecipe, PolicyRecipe, Recipe, TokenizerRecipe, read_recipe
from dzedge.export.release import release
from dzedge.export.source import Source
from dzedge.export.windows import Windows
from dzedge.minisign import SecretKey
from dzedge.policies import load_policy
from dzedge.types import ActionPrefix

ROOT = Path(__file__).parents[1]
FRONT, WRIST = "observation.images.front", "observation.images.wrist"
NAMES = ["shoulder.pos", "elbow.pos", "gripper.pos"]
PATCHES = Sizes(
    tokenizer="vae", image_height=24, image_width=32, cell=8, tokens=12, channels=4, encoder_width=4, decoder_width=4,
    width=32, layers=2, heads=2, words=8,
)  # fmt: skip


def record(
    root: Path, tasks: tuple[str, ...] = ("put the cup on the box", "wave"), fps: int = 20, names: Any = NAMES,
    cameras: tuple[str, ...] = (FRONT,), size: tuple[int, int] = (48, 64), length: int = 50, scale: float = 1.0,
) -> Path:  # fmt: skip
    """A dataset as a stranger would have recorded it: made-up frames, joints that drift, commands a step ahead."""
    row = {"dtype": "float32", "shape": [3], "names": names}
    columns = {"observation.state": row, "action": row, **{name: {"dtype": "video"} for name in cameras}}
    rng = np.random.default_rng(0)
    with Writer(root, columns, fps, "so101_follower", size) as writer:
        for number, task in enumerate(tasks):
            joints = (np.linspace(0.0, 1.0, length + 1)[:, None] + 0.1 * number + [0.0, 0.2, 0.4]) * scale
            frames = rng.integers(0, 255, (length, *size, 3), dtype=np.uint8)
            moves = {"observation.state": joints[:-1].astype(np.float32), "action": joints[1:].astype(np.float32)}
            writer.add(moves, dict.fromkeys(cameras, frames), task)
    return root


class TestWords:
    def test_of_the_data(self) -> None:
        found = vocabulary_of(["Put the cup on box 2!", "", "wave at the cup"])
        assert found == {"2": 1, "at": 2, "box": 3, "cup": 4, "on": 5, "put": 6, "the": 7, "wave": 8}
        assert words_of("the CUP", 4, found) == [7, 4, 0, 0]
        with pytest.raises(PolicyError, match="word 'reach' of 'reach the cup' is unknown; known: 2, at, box"):
            words_of("reach the cup", 4, found)
        assert words_of("reach the red cube", 4) == [VOCABULARY[w] for w in ("reach", "the", "red", "cube")]

    def test_their_order_counts(self) -> None:
        torch.manual_seed(0)
        text, ids = PlainTextEncoder(PATCHES), [1, 2, 3, 0, 0, 0, 0, 0]
        with torch.no_grad():
            one, two = (text(torch.tensor([words])) for words in (ids, [3, 2, 1, *ids[3:]]))
            nothing = text(torch.zeros(1, 8, dtype=torch.int64))
        assert one.shape == (1, 1, PATCHES.width)
        assert (one - two).abs().max() > 1e-3
        assert (one - nothing).abs().max() > 1e-3


class TestSource:
    def test_is_read_off_the_dataset(self, tmp_path: Path) -> None:
        root = record(tmp_path / "a")
        source = Source.of([root, root], DataRecipe(), PATCHES)
        assert source.robot == "so101_follower"
        assert source.joints == ("shoulder", "elbow", "gripper")
        assert source.camera == FRONT
        assert (source.dt_ns, source.frame_dt_ns) == (100_000_000, 200_000_000)
        assert (source.action_steps, source.frame_steps) == (2, 4)
        assert list(source.vocabulary) == ["box", "cup", "on", "put", "the", "wave"]
        sizes = source.sized(PATCHES)
        assert (sizes.joints, sizes.vocabulary) == (3, 7)
        assert Source.from_json(source.to_json()) == source != Source()
        assert Source.from_json(None) == Source(), "a checkpoint from before"

    @pytest.mark.parametrize(
        ("names", "joints"),
        [({"motors": ["a", "b", "gripper"]}, ("a", "b", "gripper")), (None, ("joint_1", "joint_2", "joint_3"))],
    )
    def test_names_in_other_clothes(self, tmp_path: Path, names: Any, joints: tuple[str, ...]) -> None:
        assert Source.of([record(tmp_path / "a", names=names)], DataRecipe(), PATCHES).joints == joints

    def test_several_cameras(self, tmp_path: Path) -> None:
        root = record(tmp_path / "a", cameras=(FRONT, WRIST))
        with pytest.raises(UsageError, match=f"2 cameras .{FRONT}, {WRIST}.; set camera in"):
            Source.of([root], DataRecipe(), PATCHES)
        assert Source.of([root], DataRecipe(camera=WRIST), PATCHES).camera == WRIST
        with pytest.raises(UsageError, match="no camera 'top'"):
            Source.of([root], DataRecipe(camera="top"), PATCHES)

    @pytest.mark.parametrize(
        ("fps", "recipe", "says"),
        [
            (4, DataRecipe(), "4 frames a second, allowed 5..60"),
            (15, DataRecipe(), r"dt = 0.1 s is no whole number of steps at 15 Hz; set 0.0667 or 0.1333"),
            (30, DataRecipe(frame_dt=0.01), "frame_dt = 0.01 s"),
        ],
    )
    def test_rates_that_do_not_fit(self, tmp_path: Path, fps: int, recipe: DataRecipe, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            Source.of([record(tmp_path / "a", fps=fps)], recipe, PATCHES)

    def test_a_rate_that_fits_when_asked_so(self, tmp_path: Path) -> None:
        source = Source.of([record(tmp_path / "a", fps=15)], DataRecipe(dt=0.0667, frame_dt=0.2), PATCHES)
        assert (source.action_steps, source.frame_steps, source.dt_ns) == (1, 3, 66_666_667)

    def test_datasets_that_disagree(self, tmp_path: Path) -> None:
        one, other = record(tmp_path / "a"), record(tmp_path / "b", fps=30)
        with pytest.raises(UsageError, match=r"b: 30 Hz, joints shoulder, elbow, gripper.* must be as .*a: 20 Hz"):
            Source.of([one, other], DataRecipe(), PATCHES)

    def test_too_many_words(self, tmp_path: Path) -> None:
        root = record(tmp_path / "a", tasks=("a b c d e f g h i",))
        with pytest.raises(UsageError, match=r"a task of 9 words, allowed 0..8: set words"):
            Source.of([root], DataRecipe(), PATCHES)

    def test_units(self) -> None:
        degrees = np.array([[90.0, -45.0, 50.0]], np.float32)
        source = Source(joints=("shoulder", "elbow", "gripper"), units="deg")
        np.testing.assert_allclose(source.radians(degrees, "x"), [[np.pi / 2, -np.pi / 4, 0.5]], rtol=1e-6)
        assert np.array_equal(replace(source, units="rad").radians(degrees / 100, "x"), degrees / 100)
        with pytest.raises(UsageError, match=r"x: joint shoulder spans 90.0..90.0, allowed -6.28..6.28 rad"):
            replace(source, units="rad").radians(degrees, "x")
        with pytest.raises(UsageError, match=r"data.units 'percent': must be one of rad, deg"):
            DataRecipe(units="percent")


class TestFootage:
    def test_as_the_simulator_s_own(self) -> None:
        image = np.random.default_rng(0).integers(0, 256, (2, 120, 160, 3), dtype=np.uint8)
        small = footage.Lens(Sizes()).shrink(image)
        assert np.array_equal(small, np.stack([data.shrink(frame) for frame in image]))

    def test_any_size(self) -> None:
        lens = footage.Lens(PATCHES)
        for size in ((480, 640), (30, 50), (24, 32)):
            grey = np.full((2, *size, 3), 77, np.uint8)
            assert np.array_equal(lens.shrink(grey), np.full((2, 24, 32, 3), 77, np.uint8))

    def test_evenly_spread(self, tmp_path: Path) -> None:
        root = record(tmp_path / "a", tasks=("a", "b", "c"), length=7)
        every = np.concatenate([footage.Lens(PATCHES).shrink(f) for f in Dataset(root).video(FRONT)])
        assert np.array_equal(footage.sampled([(root, range(3))], FRONT, PATCHES, 6), every[::4])
        assert np.array_equal(footage.sampled([(root, range(1, 3))], FRONT, PATCHES, 99), every[7:])
        found = footage.pairs((root, range(1, 2)), FRONT, PATCHES, 3, steps=4)
        assert np.array_equal(found, np.stack([[every[7], every[11]], [every[9], every[13]]]))
        with pytest.raises(UsageError, match="no held-out episode has more than 7 frames"):
            footage.pairs((root, range(3)), FRONT, PATCHES, 3, steps=7)

    def test_what_is_held_out(self, tmp_path: Path) -> None:
        root = record(tmp_path / "a", tasks=("a", "b", "c"), length=5)
        assert footage.takes([root, root]) == ([(root, range(2))], (root, range(2, 3)))
        other = record(tmp_path / "b", tasks=("a",), length=5)
        assert footage.takes([root, other]) == ([(root, range(3))], (other, range(1)))
        with pytest.raises(UsageError, match="1 episode, at least 2 needed"):
            footage.takes([other, other])


def seen(root: Path, sizes: Sizes = PATCHES) -> tuple[Episodes, Source, Sizes]:
    source = Source.of([root], DataRecipe(), sizes)
    sizes = source.sized(sizes)
    torch.manual_seed(0)
    return episodes.read(root, Vae(sizes).eval().encoder, sizes, source), source, sizes


class TestEpisodes:
    def test_words_and_latents(self, tmp_path: Path) -> None:
        read, source, sizes = seen(record(tmp_path / "a"))
        assert read.latents.shape == (100, 12, 4)
        assert read.words[0].tolist() == words_of("put the cup on the box", 8, source.vocabulary)
        assert read.words[50].tolist() == [source.vocabulary["wave"]] + [0] * 7
        assert (read.kind == LABELLED).all()
        assert (read.colour == -1).all()
        with pytest.raises(PolicyError, match="word 'the' of 'put the cup on the box' is unknown; known: put"):
            episodes.read(tmp_path / "a", Vae(sizes).eval().encoder, sizes, replace(source, vocabulary={"put": 1}))

    def test_chosen(self, tmp_path: Path) -> None:
        read, _, _ = seen(record(tmp_path / "a", tasks=("a", "b", "c"), length=6))
        part = read.chosen(range(1, 3))
        assert np.array_equal(part.joints, read.joints[6:])
        assert (part.start[0], part.end[-1]) == (0, 12)
        assert read.chosen(range(3)) is read

    def test_windows_go_by_time(self, tmp_path: Path) -> None:
        """At 20 Hz an action is the command after two steps, a frame four steps ahead."""
        read, source, sizes = seen(record(tmp_path / "a"))
        windows = Windows(read, sizes, source=source)
        batch = windows.batch(np.array([10]), np.array([3]))
        wanted = read.commands[10 + np.array([1, 3, 5, 7, 9, 11, 13, 15])] - read.joints[10]
        np.testing.assert_allclose(batch.action[0].numpy() * windows.moments.action_std, wanted, atol=1e-6)
        np.testing.assert_allclose(wanted[:, 0], np.arange(1, 9) * 2 / 50, atol=1e-6)
        residual = batch.video[0].numpy() * windows.moments.residual_std
        np.testing.assert_allclose(residual, read.latents[[14, 18, 22, 26]] - read.latents[10], atol=1e-5)
        assert np.array_equal(batch.before[0], read.latents[6])
        assert np.array_equal(batch.slow[0], read.latents[4])
        assert batch.slow_age.item() == pytest.approx(0.3)
        assert batch.frame_mask.min() == batch.action_mask.min() == 1.0
        assert windows.moments.latent_mean is not None
        again = Moments.from_json(windows.moments.to_json())
        np.testing.assert_array_equal(again.latent_std, windows.moments.latent_std)


@pytest.mark.parametrize("family", families.LEARNERS)
class TestFamilies:
    def test_learn_without_names(self, family: str, tmp_path: Path) -> None:
        read, source, sizes = seen(record(tmp_path / "a"))
        windows, learner = Windows(read, sizes, source=source), families.LEARNERS[family]()
        torch.manual_seed(0)
        model = learner.build(sizes, windows.moments)
        batch = learner.batch(windows, windows.by_kind[LABELLED][:8], np.random.default_rng(0))
        recipe = PolicyRecipe(family=family, labelled=8, play=0, video=0)
        terms = learner.losses(model, recipe, batch, 8, torch.Generator().manual_seed(0))
        assert set(terms) == {"action", "video"} - ({"video"} if family not in ("wam", "wan_joint") else set())
        sum(terms.values(), torch.zeros(())).backward()
        names = dict(model.named_parameters())
        used = [name for name, value in names.items() if value.grad is not None and value.grad.abs().max() > 0]
        assert used and all(torch.isfinite(names[name].grad).all() for name in used)
        assert learner.figures(model.eval(), windows)["act_r2"] < 1.0

    def test_half_precision(self, family: str, tmp_path: Path) -> None:
        """The same loss under bfloat16, about."""
        read, source, sizes = seen(record(tmp_path / "a"))
        windows, learner = Windows(read, sizes, source=source), families.LEARNERS[family]()
        torch.manual_seed(0)
        model = learner.build(sizes, windows.moments)
        batch = learner.batch(windows, windows.by_kind[LABELLED][:8], np.random.default_rng(0))
        recipe, found = PolicyRecipe(family=family), []
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                terms = learner.losses(model, recipe, batch, 8, torch.Generator().manual_seed(0))
            found.append(sum(terms.values(), torch.zeros(())).item())
        assert found[0] == pytest.approx(found[1], rel=0.03)

    def test_graphs_have_the_boundary_s_shapes(self, family: str) -> None:
        sizes = replace(PATCHES, joints=3, vocabulary=3)  # fewer words than an example instruction is long
        learner = families.LEARNERS[family]()
        model = learner.build(sizes, Moments.neutral(sizes)).eval()
        cut = {graph.name: graph for graph in families.cut(model, Vae(sizes).eval())}
        assert run(cut["frame_encoder"])[0].shape == (1, 12, 4)
        assert run(cut["text"])[0].shape == ((2, 2, 8, 16) if family == "wan_joint" else (1, 1, 32))
        for graph in cut.values():
            assert all(bool(torch.isfinite(out).all()) for out in run(graph))
        if "context" in cut:
            rows = 2 * 12 + (1 if family == "wam" else 2)  # the joints are the action stream's there
            assert run(cut["context"])[0].shape == (2, 2, rows, 16)

    def test_every_tensor_of_a_step_lies_with_the_model(self, family: str, tmp_path: Path) -> None:
        """What is made on the default device, here one without numbers, would stop a training on a GPU."""
        read, source, sizes = seen(record(tmp_path / "a"))
        windows, learner = Windows(read, sizes, source=source), families.LEARNERS[family]()
        model = learner.build(sizes, windows.moments)
        batch = learner.batch(windows, windows.by_kind[LABELLED][:4], np.random.default_rng(0))
        look, mask, at = (batch.latent, batch.before, batch.has_history), torch.zeros(4, 8), torch.zeros(4)
        slots, valid = torch.tensor([[0.0, -1.0]]).expand(4, -1), torch.ones(4, 2)
        act = (batch.state, batch.action, batch.action, mask, at)
        said = torch.zeros(4, sizes.horizon * sizes.joints, dtype=torch.int64)
        with torch.device("meta"):
            if family == "wam":
                window = model.window(torch.stack([batch.latent, batch.before], dim=1))
                text = model.text(batch.words)
                out, rows, _ = model.video(batch.video, batch.latent, window, slots, valid, text, at, batch.body)
                out = out.mean() + model.action(batch.action, batch.action, mask, batch.state, rows, at).mean()
            elif family == "wan_joint":
                frames = model.grid.cells(model.scaled(batch.latent.unsqueeze(1).expand(-1, 5, -1, -1)))
                when, words = torch.zeros_like(batch.action_mask), model.context(batch.words)
                state = batch.state.unsqueeze(1)
                out, _ = model.trunk.teacher_forced(frames, frames, batch.action, state, words, when[:, :5], when)
            elif family == "token_vla":
                out, _ = model(look, batch.words, batch.state, said)
            else:
                out, _ = model(look, batch.words, *([batch.slow_age] if family == "dual_vla" else []), *act)
        assert out.device.type == "cpu"


def run(graph: Graph) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        out = graph.module(*graph.inputs.values())
    return out if isinstance(out, tuple) else (out,)


class TestRecipes:
    @pytest.mark.parametrize("name", ["own_cpu", "gpu"])
    def test_shipped_ones(self, name: str) -> None:
        recipe = read_recipe(ROOT / "export" / "recipes" / f"{name}.toml")
        assert not recipe.sizes.structured
        assert recipe.policy.family == "wam"
        assert (recipe.policy.compile, recipe.policy.half) == (name == "gpu", name == "gpu")

    def test_no_arm_to_read_joints_off(self) -> None:
        with pytest.raises(UsageError, match="pseudo_labels true: must be false"):
            Recipe(PATCHES, TokenizerRecipe(), PolicyRecipe(pseudo_labels=True))

    def test_channels_weigh_alike(self) -> None:
        assert (fit_wam.importance_of(PATCHES, 0.3) == torch.ones(12, 4)).all()
        assert fit_wam.importance_of(Sizes(), 0.3).unique().numel() == 3


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated episodes with nothing left that only a simulator knows."""
    folder = tmp_path_factory.mktemp("own")
    data.make_part(folder / "full", 8, 7, 0, marker=False)
    full = Dataset(folder / "full")
    kept = ("observation.state", "action", "acts")
    columns = {name: {"dtype": f.dtype, "shape": list(f.shape), "names": f.names} for name, f in full.features.items()
               if name in kept}  # fmt: skip
    values = {name: full.column(name) for name in kept}
    with Writer(folder / "own", {FRONT: {"dtype": "video"}, **columns}, 10, "so101", (120, 160)) as writer:
        for number, frames in enumerate(full.video(FRONT)):
            rows = slice(full.offsets[number], full.offsets[number + 1])
            cells = {name: values[name][rows].reshape(len(frames), -1) for name in kept}
            writer.add(cells, {FRONT: frames}, full.tasks[number])
    return folder / "own"


@pytest.mark.slow
class TestWhole:
    def test_from_a_folder_to_a_policy(self, own: Path, tmp_path: Path) -> None:
        assert not any(name.startswith("truth") for name in Dataset(own).features)
        recipe = Recipe(
            replace(PATCHES, words=8), TokenizerRecipe(iterations=24, batch=16, stills=100, save_every=24),
            PolicyRecipe(iterations=24, labelled=12, play=0, video=4, save_every=24, max_prefix=2),
        )  # fmt: skip
        tokenizer, policy = tmp_path / train.TOKENIZER, tmp_path / "mine-0.safetensors"
        train.train_tokenizer(recipe, own, tokenizer)
        train.train_policy(recipe, own, policy)
        source = Source.load(policy)
        assert (source.robot, source.camera, set(source.joints)) == ("so101", FRONT, set(stub.JOINTS))
        assert set(source.vocabulary) == {w for task in Dataset(own).tasks for w in task.split()}
        out = tmp_path / "mine.dzp"
        secret = SecretKey.decode((ROOT / "export" / "test.key").read_text(), "test.key")
        wanted = Wanted(secret, 1, "2026-01-01T00:00:00Z", precisions=("fp32",), pairs=4)
        report = release(policy, [own], out, wanted)
        assert report["precisions"]["fp32"]["action_share"] < 1e-4
        bundle = open_bundle(out, allow_test_key=True)
        section = bundle.manifest.dzedge
        assert section.video.token_names[0] == "patch 0,0"
        assert section.language.vocabulary == source.vocabulary
        assert b"without labels" in bundle.read("README.md")
        runtime = load_policy(config.load(config.default_path()), bundle)
        task = next(task for task in Dataset(own).tasks if task)
        runtime.reset(task)
        nothing = ActionPrefix(np.zeros((0, 6)))
        chunk = runtime.infer(stub.observation(0, 3), nothing, 1)
        assert chunk.positions.shape == (8, 6)
        assert chunk.imagined.shape == (4, 12, 4)
        assert np.isfinite(chunk.positions).all() and np.isfinite(chunk.imagined).all()
        assert runtime.decode(chunk.imagined).shape == (4, 24, 32, 3)
        other = runtime.infer(stub.observation(1, 4), nothing, 1)
        assert not np.array_equal(other.positions, chunk.positions)
        with pytest.raises(PolicyError, match="unknown word 'juggle'"):
            runtime.reset("juggle")
        with pytest.raises(UsageError, match="tokenizer 'vae', the recipe has 'structured'"):
            train.check_tokenizer(tokenizer, train.tokenizers.load(tokenizer).encoder.sizes, Sizes())
        again = {f.name: getattr(train.tokenizers.load(tokenizer).encoder.sizes, f.name) for f in fields(Sizes)}
        assert again["tokens"] == 12
