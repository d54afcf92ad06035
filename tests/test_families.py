"""Every family on its way from torch to the robot: the same numbers in ONNX Runtime and in the bundle that runs."""

from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from dzedge import config
from dzedge.bundle import open_bundle
from dzedge.engine import Noise
from dzedge.errors import UsageError
from dzedge.export import checkpoint, families, fit_vla, parity, stub
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.graphs import Graph
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.onnx import OPSET, export_all
from dzedge.export.package import SAMPLERS, Release, package
from dzedge.export.windows import Batch
from dzedge.kernels.image import ImagePlan
from dzedge.minisign import SecretKey
from dzedge.policies import FAMILIES, BundledPolicy, load_policy
from dzedge.types import ActionPrefix

TOY = Sizes(width=32, layers=1, heads=2, encoder_width=4, decoder_width=4)
MOMENTS = Moments(
    action_std=np.linspace(0.02, 0.2, 48).reshape(8, 6), state_mean=np.linspace(-0.2, 0.3, 6),
    state_std=np.linspace(0.5, 0.9, 6), residual_std=np.full((4, 7, 10), 0.3),
    action_low=np.linspace(-4.0, -2.0, 48).reshape(8, 6), action_high=np.linspace(3.0, 5.0, 48).reshape(8, 6),
)  # fmt: skip
KEY = Path(__file__).parents[1] / "export" / "test.key"
NOTHING = ActionPrefix(np.zeros((0, 6)))
GRAPHS = {
    "wam": {
        "text", "modulation", "frame_encoder", "prefill", "context", "video_step", "action_step", "frame_decoder",
    },
    "flow_vla": {"text", "frame_encoder", "context", "action_step"},
    "token_vla": {"text", "frame_encoder", "context", "token_step"},
    "dual_vla": {"text", "frame_encoder", "features", "action_step"},
}

pytestmark = pytest.mark.slow


class Made(NamedTuple):
    """A model that knows nothing, its learner, and its graphs as files."""

    family: str
    learner: Any
    model: Any
    tokenizer: Tokenizer
    files: dict[str, Path]


@pytest.fixture(scope="module", params=[name for name in families.LEARNERS if name != "wan_joint"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    torch.manual_seed(3)
    learner = families.LEARNERS[request.param]()
    model, tokenizer = learner.build(TOY, MOMENTS).eval(), Tokenizer(TOY).eval()
    for name, part in model.named_modules():  # a fresh trunk's heads are zero; zeros prove nothing
        if isinstance(part, nn.Linear) and name.rsplit(".", 1)[-1] in ("shared", "leave"):
            nn.init.normal_(part.weight, std=0.1)
    nn.init.normal_(model.text.points, std=0.1)
    files = export_all(families.cut(model, tokenizer), tmp_path_factory.mktemp(request.param))
    return Made(request.param, learner, model, tokenizer, files)


@pytest.fixture(scope="module")
def bundled(made: Made, tmp_path_factory: pytest.TempPathFactory) -> BundledPolicy:
    """The bundle of it, opened and running."""
    folder = tmp_path_factory.mktemp("bundle") / "toy.dzp"
    secret = SecretKey.decode(KEY.read_text(), "test.key")
    about = Release("toy", 1, made.family, max_prefix=3)
    package(folder, made.model, made.tokenizer, MOMENTS, about, secret, "2026-01-01T00:00:00Z", files=made.files)
    robot = config.load(config.default_path())
    robot = msgspec.structs.replace(robot, sim=msgspec.structs.replace(robot.sim, seed=5))
    policy = load_policy(robot, open_bundle(folder, allow_test_key=True))
    policy.reset(stub.ASKED)
    return policy


class TestGraphs:
    def test_parity(self, made: Made) -> None:
        found = parity.check(families.cut(made.model, made.tokenizer, seed=5), made.files)
        assert {p.graph for p in found} == set(made.files) == GRAPHS[made.family]
        assert all(p.scale > 1e-3 for p in found), "an output of zeros proves nothing"
        assert all(p.difference < 3e-5 for p in found)

    def test_parity_fails_where_weights_differ(self, made: Made) -> None:
        cut = families.cut(made.model, made.tokenizer, seed=5)
        last = next(graph for graph in cut if graph.name.endswith("_step"))
        weight = next(p for name, p in last.module.named_parameters() if name.endswith("leave.weight"))
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[0, 0] += 0.5
        try:
            with pytest.raises(parity.ParityError, match=last.name):
                parity.check([last], made.files)
        finally:
            with torch.no_grad():
                weight.copy_(kept)

    def test_every_input_counts(self, made: Made) -> None:
        """An input that the exporter found unused would be missing on the robot; one that does nothing is a mistake."""
        rng = np.random.default_rng(0)
        for graph in families.cut(made.model, made.tokenizer, seed=5):
            session = parity.session(made.files[graph.name])
            assert [i.name for i in session.get_inputs()] == list(graph.inputs)
            assert [o.name for o in session.get_outputs()] == list(graph.outputs)
            feed = {name: value.numpy() for name, value in graph.inputs.items()}
            before = session.run(None, feed)
            for name, value in feed.items():
                after = session.run(None, {**feed, name: _other(name, value, rng)})
                moved = max(float(np.abs(a - b).max()) for a, b in zip(before, after, strict=True))
                assert moved > 1e-6, f"{graph.name}: {name}"

    def test_files_are_plain(self, made: Made) -> None:
        for path in made.files.values():
            proto = onnx.load(str(path))
            assert [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")] == [OPSET]
            assert b"/export/model/" not in path.read_bytes(), "source paths travel with the graph"
            for value in [*proto.graph.input, *proto.graph.output]:
                assert all(d.HasField("dim_value") for d in value.type.tensor_type.shape.dim)


def _other(name: str, value: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """The input changed into another that is as legal."""
    if name in ("has_before", "has_given", "valid"):
        return 1.0 - value
    if name == "prefix_mask":
        return np.roll(value, 1, axis=1)
    if value.dtype == np.int64:
        return value + 1
    return value + rng.normal(size=value.shape).astype(value.dtype)


class TestBundle:
    def test_runs_its_familys_class(self, made: Made, bundled: BundledPolicy) -> None:
        assert type(bundled) is FAMILIES[made.family]
        assert set(bundled.section.graphs) == GRAPHS[made.family]
        assert bundled.section.samplers == SAMPLERS[made.family]
        assert bundled.max_prefix == 3

    def test_infers_a_finite_chunk(self, made: Made, bundled: BundledPolicy) -> None:
        chunk = bundled.infer(stub.observation(0, 3), NOTHING, 7)
        assert chunk.positions.shape == (8, 6)
        assert np.isfinite(chunk.positions).all()
        assert np.abs(chunk.positions - stub.STATE).max() > 1e-3, "it wants to move"
        assert chunk.imagined.shape == ((4 if made.family == "wam" else 0), 7, 10)
        assert np.isfinite(chunk.imagined).all()
        if made.family != "token_vla":  # of a model that knows nothing, the likeliest words hardly change
            other = bundled.infer(stub.observation(1, 4), NOTHING, 8)
            assert not np.array_equal(other.positions, chunk.positions)

    def test_committed_actions_come_back(self, made: Made, bundled: BundledPolicy) -> None:
        committed = stub.STATE + np.array([[0.01], [0.02], [0.03]])
        chunk = bundled.infer(stub.observation(0, 3), ActionPrefix(committed), 7)
        np.testing.assert_allclose(chunk.positions[:3], committed, atol=1e-5)
        free = bundled.infer(stub.observation(0, 3), NOTHING, 7)
        assert np.abs(chunk.positions[3:] - free.positions[3:]).max() > 1e-6

    @pytest.mark.parametrize("sampler", range(3))
    def test_every_sampler_that_it_names(self, made: Made, bundled: BundledPolicy, sampler: int) -> None:
        named = bundled.section.samplers
        type(bundled)(
            bundled._bundle, bundled._machine, camera=(120, 160), sampler=named[min(sampler, len(named) - 1)]
        ).infer(stub.observation(0, 3), NOTHING, 0)  # fmt: skip

    def test_says_what_the_learner_says(self, made: Made, bundled: BundledPolicy) -> None:
        """Pixels, words, joints, statistics, noise and steps: the robot's chunk is the training side's."""
        if made.family == "wam":
            pytest.skip("its sampling is done again by hand in test_wam.py")
        chunk = bundled.infer(stub.observation(0, 3), NOTHING, 7)
        batch = _batch(made.tokenizer)
        noise = np.empty((1, 8, 6), np.float32)
        Noise(5).of(7).standard_normal(dtype=np.float32, out=noise)
        with torch.no_grad():
            action = made.learner.chunk(made.model, batch, torch.from_numpy(noise))[0].numpy()
        expected = action * MOMENTS.action_std + stub.STATE
        np.testing.assert_allclose(chunk.positions, expected, atol=1e-4)
        assert fit_vla.FEW_STEPS == 4, "euler(4) is the default of bundles"


def _batch(tokenizer: Tokenizer) -> Batch:
    """`stub.observation(0, 3)` as the training side sees it."""
    seen = stub.observation(0, 3)
    plan, image = ImagePlan(120, 160, None, 72, 96), np.empty((3, 72, 96), np.float32)
    latents = []
    for frame in seen.frames:
        plan.run(frame.image, image)
        with torch.no_grad():
            latents.append(tokenizer.encoder(torch.from_numpy(image[None].copy())))
    before, latent = latents
    state = torch.from_numpy(((stub.STATE - MOMENTS.state_mean) / MOMENTS.state_std)[None]).float()
    one, nothing = torch.ones(1), torch.zeros(1, 8, 6)
    return Batch(
        latent=latent, before=before, has_history=one, video=torch.zeros(1, 4, 7, 10), frame_mask=torch.ones(1, 4),
        action=nothing, action_mask=torch.ones(1, 8), state=state,
        words=torch.tensor([words_of(stub.ASKED, TOY.words)]), colour=torch.zeros(1, dtype=torch.int64),
        body=torch.zeros(1, dtype=torch.int64), slow=latent, slow_before=before, slow_history=one,
        slow_age=torch.zeros(1),
    )  # fmt: skip


class TestLoad:
    def test_a_checkpoint_knows_its_family(self, made: Made, tmp_path: Path) -> None:
        path = tmp_path / "a.safetensors"
        recipe = {"family": made.family, "max_prefix": 3}
        checkpoint.save(path, recipe=recipe, sizes=TOY.to_json(), moments=MOMENTS.to_json(),
                        average=made.model.state_dict())  # fmt: skip
        family, model, moments, found = families.load(path)
        assert (family, found) == (made.family, recipe)
        assert type(model) is type(made.model)
        np.testing.assert_array_equal(moments.action_low, MOMENTS.action_low)
        for name, value in made.model.state_dict().items():
            assert torch.equal(model.state_dict()[name], value), name

    @pytest.mark.parametrize("recipe", [{}, {"iterations": 5}, {"family": "diffusion"}])
    def test_what_is_no_policy_is_refused(self, recipe: dict[str, Any], tmp_path: Path) -> None:
        checkpoint.save(tmp_path / "tokenizer.safetensors", recipe=recipe)
        known = "wam, flow_vla, token_vla, dual_vla, wan_joint"
        with pytest.raises(UsageError, match=f"must be one of {known}; name a policy's"):
            families.load(tmp_path / "tokenizer.safetensors")


def test_graphs_are_seeded(made: Made) -> None:
    def inputs(seed: int) -> list[Graph]:
        return families.cut(made.model, made.tokenizer, seed)

    same = zip(inputs(1), inputs(1), inputs(2), strict=True)
    for one, again, other in same:
        assert all(torch.equal(one.inputs[name], again.inputs[name]) for name in one.inputs)
        if one.name not in ("text",):
            assert any(not torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)
