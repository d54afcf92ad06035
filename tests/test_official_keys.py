"""Every name of an official checkpoint accounted for, in both directions, at the published sizes."""

import math

import pytest
import torch
from torch import Tensor

from dzedge.errors import UsageError
from dzedge.export.model.wan_config import preset
from dzedge.export.official_keys import expected, sort, taken

LINEAR = ("weight", "bias")
ATTENTION = [f"{part}.{kind}" for part in "qkvo" for kind in LINEAR] + ["norm_q.weight", "norm_k.weight"]
IMAGE = [f"{part}.{kind}" for part in ("k_img", "v_img") for kind in LINEAR] + ["norm_k_img.weight"]
BLOCK = [
    "modulation", "norm3.weight", "norm3.bias", *(f"ffn.{n}.{kind}" for n in (0, 2) for kind in LINEAR),
    *(f"self_attn.{name}" for name in ATTENTION), *(f"cross_attn.{name}" for name in ATTENTION + IMAGE),
]  # fmt: skip
AROUND = [
    *(f"{name}.{kind}" for kind in LINEAR for name in (
        "patch_embedding", "text_embedding.0", "text_embedding.2", "time_embedding.0", "time_embedding.2",
        "time_projection.1", "head.head", "img_emb.proj.0", "img_emb.proj.1", "img_emb.proj.3", "img_emb.proj.4",
    )), "head.modulation",
    *(f"{name}.{kind}" for kind in "Wb" for name in (
        "state_encoder.layer1", "state_encoder.layer2", "action_decoder.layer1", "action_decoder.layer2",
        "action_encoder.W1", "action_encoder.W2", "action_encoder.W3",
    )),
]  # fmt: skip
"""The published names (facts/dreamzero 4), written down again."""


def published(layers: int) -> set[str]:
    return {*AROUND, *(f"blocks.{layer}.{name}" for layer in range(layers) for name in BLOCK)}


class Named:
    """Names and shapes without tensors."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self.shapes = shapes

    def names(self) -> list[str]:
        return list(self.shapes)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def read(self, name: str) -> Tensor:
        raise AssertionError(f"{name} is read, but only its shape may be looked at")


def prefixed(size: str, prefix: str = "action_head.model.") -> dict[str, tuple[int, ...]]:
    return {prefix + name: shape for name, shape in expected(preset(size)).items()}


@pytest.mark.parametrize(("size", "count"), [("5B", "5.607"), ("14B", "16.484")])
class TestPublishedSizes:
    def test_both_directions(self, size: str, count: str) -> None:
        """What the file has is what is wanted: neither list holds a name that the other lacks."""
        config = preset(size)
        wanted = expected(config)
        assert set(wanted) == published(config.layers)
        assert f"{sum(map(math.prod, wanted.values())) / 1e9:.3f}" == count
        files = Named(prefixed(size))
        found = sort(files)
        assert set(found.network) == published(config.layers)
        assert found.unknown == () and found.left_out == {}
        weights, missing = taken(config, [(files, found.network)])
        assert missing == [] and set(weights.names()) == published(config.layers)

    def test_with_adapters_and_their_wrapper(self, size: str, count: str) -> None:
        config = preset(size)
        shapes = {
            name.replace(".q.", ".q.base_layer."): shape
            for name, shape in prefixed(size, "action_head.model.base_model.model.").items()
        }
        found = sort(Named(shapes))
        assert set(found.network) == published(config.layers) and not found.unknown
        assert found.network["blocks.0.self_attn.q.weight"].endswith("self_attn.q.base_layer.weight")


class TestSort:
    def test_parts_that_are_left_out_are_counted(self) -> None:
        shapes = {
            "action_head.model.head.modulation": (1, 2, 48), "action_head.vae.model.conv1.weight": (2, 3),
            "action_head.vae.model.conv1.bias": (2,), "action_head.text_encoder.norm.weight": (7,),
            "action_head.image_encoder.model.visual.cls": (5, 2),
        }  # fmt: skip
        found = sort(Named(shapes))
        assert found.left_out == {
            "frame tokenizer (VAE)": (2, 8), "text encoder (UMT5)": (1, 7), "image encoder (CLIP)": (1, 10),
        }  # fmt: skip
        assert found.network == {"head.modulation": "action_head.model.head.modulation"}

    def test_what_belongs_nowhere_is_unknown(self) -> None:
        shapes = {"action_head.model.head.modulation": (1,), "backbone.x": (1,), "action_head.mystery": (1,)}
        assert sort(Named(shapes)).unknown == ("backbone.x", "action_head.mystery")

    def test_bare_network(self) -> None:
        """A base model's names have no prefix."""
        assert sort(Named({"head.modulation": (1,), "blocks.0.modulation": (1,)})).network == {
            "head.modulation": "head.modulation", "blocks.0.modulation": "blocks.0.modulation",
        }  # fmt: skip

    def test_same_tensor_twice(self) -> None:
        shapes = {"action_head.model.a.weight": (1,), "action_head.model.a.base_layer.weight": (1,)}
        with pytest.raises(UsageError, match=r"both 'a\.weight'"):
            sort(Named(shapes))


class TestTaken:
    def test_first_source_wins_and_the_second_fills(self) -> None:
        config = preset("nano")
        shapes = expected(config)
        own = Named({name: shape for name, shape in shapes.items() if name.startswith("state_encoder")})
        base = Named(shapes)
        weights, missing = taken(config, [(own, {n: n for n in own.names()}), (base, {n: n for n in shapes})])
        assert missing == []
        assert weights.stored["state_encoder.layer1.W"][0] is own
        assert weights.stored["head.modulation"][0] is base

    def test_missing_is_named(self) -> None:
        shapes = expected(preset("nano"))
        shapes.pop("blocks.1.ffn.2.bias")
        source = Named(shapes)
        assert taken(preset("nano"), [(source, {n: n for n in shapes})])[1] == ["blocks.1.ffn.2.bias"]

    def test_wrong_shapes_are_named(self) -> None:
        """A category tensor laid out like a linear layer's is not one."""
        shapes = expected(preset("nano"))
        _, inputs, outputs = shapes["state_encoder.layer1.W"]
        shapes["state_encoder.layer1.W"] = (1, outputs, inputs)
        with pytest.raises(UsageError, match=r"layer1\.W is \(1, 32, 8\), expected \(1, 8, 32\)"):
            taken(preset("nano"), [(Named(shapes), {n: n for n in shapes})])


def test_looking_at_14_b_takes_no_memory() -> None:
    before = torch.get_default_device()
    assert sum(map(math.prod, expected(preset("14B")).values())) > 16e9
    assert torch.get_default_device() == before
