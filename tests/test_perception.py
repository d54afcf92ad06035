"""Frames as latents: each encoded once, remembered by capture time, shown to a graph newest first."""

import numpy as np
import pytest

from dzedge.bundle import Bundle, open_bundle
from dzedge.engine import Graph, Machine, load_graph
from dzedge.errors import BundleError
from dzedge.export import stub
from dzedge.export.stub import frame
from dzedge.policies.perception import MEMORY, Perception

CAMERA, CPU = (120, 160), Machine("cpu", "avx2", 1)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(stub.write(tmp_path_factory.mktemp("bundle") / "stub.dzp"), allow_test_key=True)


def graph(opened: Bundle, name: str, **share: np.ndarray) -> Graph:
    return load_graph(opened, name, "auto", CPU, share)


@pytest.fixture
def seen(opened: Bundle) -> Perception:
    return Perception(opened.manifest.dzedge, CAMERA, None, graph(opened, "frame_encoder"))


def latent(seen: Perception, number: int) -> np.ndarray:
    return seen.kept["latent"][seen.slot(frame(number))].copy()


def inputs() -> dict[str, np.ndarray]:
    shape = (1, stub.K, stub.C)
    return {"latent": np.full(shape, 9.0), "before": np.full(shape, 9.0), "has_before": np.full(1, 9.0)}


def test_one_frame_has_none_before_it(seen: Perception) -> None:
    found = inputs()
    seen.show((frame(3),), found)
    np.testing.assert_array_equal(found["latent"], latent(seen, 3))
    assert found["has_before"][0] == 0.0
    assert not found["before"].any()


@pytest.mark.parametrize("numbers", [(0, 3), (7, 0, 3)])
def test_of_several_the_last_two_are_shown(seen: Perception, numbers: tuple[int, ...]) -> None:
    found = inputs()
    seen.show(tuple(frame(number) for number in numbers), found)
    np.testing.assert_array_equal(found["latent"], latent(seen, 3))
    np.testing.assert_array_equal(found["before"], latent(seen, 0))
    assert found["has_before"][0] == 1.0
    assert not np.array_equal(found["latent"], found["before"])


def test_memory_is_a_ring_by_capture_time(seen: Perception) -> None:
    slots = [seen.slot(frame(number)) for number in range(MEMORY)]
    assert slots == list(range(MEMORY)) == [seen.slot(frame(number)) for number in range(MEMORY)]
    assert seen.slot(frame(MEMORY)) == 0
    assert seen.slot(frame(0)) == 1  # it had to go, and comes again in place of the next oldest


def test_what_is_forgotten_is_encoded_again(seen: Perception) -> None:
    first = latent(seen, 3)
    seen.forget()
    assert seen.slot(frame(4)) == 1
    np.testing.assert_array_equal(latent(seen, 3), first)


def test_a_following_graph_runs_on_each_new_frame_and_is_kept(opened: Bundle) -> None:
    encoder = graph(opened, "frame_encoder")
    seen = Perception(opened.manifest.dzedge, CAMERA, None, encoder)
    seen.follow(graph(opened, "prefill", latent=encoder.outputs["latent"]))
    slots = [seen.slot(frame(number)) for number in (0, 3)]
    for slot in slots:
        expected = seen.kept["latent"][slot, 0] @ stub.weights()["w_key"]
        np.testing.assert_allclose(seen.kept["key"][slot, 0, 0], expected, atol=1e-6)
    assert not np.array_equal(*seen.kept["key"][slots])


def test_crop_of_the_camera_is_seen_alone(opened: Bundle) -> None:
    whole, part = (
        Perception(opened.manifest.dzedge, CAMERA, crop, graph(opened, "frame_encoder"))
        for crop in (None, (0, 0, 96, 72))
    )
    corner = (frame(3).image[:72, :96] / 127.5 - 1.0).mean(axis=(0, 1)) @ stub.weights()["w_image"]
    np.testing.assert_allclose(latent(part, 3).reshape(-1), corner, atol=1e-5)
    assert not np.allclose(latent(whole, 3), latent(part, 3), atol=1e-5)


def test_an_encoder_that_does_not_fit(opened: Bundle) -> None:
    with pytest.raises(BundleError, match=r"graph prefill: inputs are \['latent'\], wanted \['image'\]"):
        Perception(opened.manifest.dzedge, CAMERA, None, graph(opened, "prefill"))
