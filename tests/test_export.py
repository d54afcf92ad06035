"""From float graphs to shipped ones: int8 for the trunk alone, what it costs, and what the bundle's card says.

Parity and bundles of every family: test_families.py.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from dzedge.export import quantize, release
from dzedge.export.fit_tokenizer import Tokenizer
from dzedge.export.model.graphs import graphs
from dzedge.export.model.moments import Moments
from dzedge.export.model.sizes import Sizes
from dzedge.export.model.text import words_of
from dzedge.export.model.wam import Wam
from dzedge.export.onnx import export_all
from dzedge.export.recipe import FAMILIES
from dzedge.export.sampler import Case, Graphs

TOY = Sizes(width=64, layers=2, heads=2, encoder_width=4, decoder_width=4)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(3)
    wam, tokenizer = Wam(TOY).eval(), Tokenizer(TOY).eval()
    for stream in (wam.video, wam.action):
        torch.nn.init.normal_(stream.leave.weight, std=0.1)
        torch.nn.init.normal_(stream.shared.weight, std=0.05)
    return export_all(graphs(wam, tokenizer.encoder, tokenizer.decoder), tmp_path_factory.mktemp("onnx"))


def cases(count: int) -> list[Case]:
    rng = np.random.default_rng(0)
    words = np.array([words_of("reach the red cube", TOY.words)])
    shape = (1, 3, TOY.image_height, TOY.image_width)
    return [
        Case(
            rng.uniform(-1, 1, shape).astype(np.float32),
            rng.uniform(-1, 1, shape).astype(np.float32),
            words,
            rng.normal(size=TOY.joints),
        )
        for _ in range(count)
    ]


@pytest.mark.slow
class TestInt8:
    def test_costs_little_and_something(self, files: dict[str, Path]) -> None:
        moments = Moments.neutral(TOY)
        reference = Graphs(files, TOY, moments)
        variants = quantize.quantize_all(files, quantize.record(reference, cases(4)))
        assert set(variants) == set(quantize.QUANTIZED)
        board = Graphs(quantize.with_variant(files, "s8s8"), TOY, moments, qdq_off=True)
        narrow = Graphs(quantize.with_variant(files, "u8s8"), TOY, moments)
        for graphs_of in (board, narrow):
            cost = quantize.loss(reference, graphs_of, cases(3), moments)
            assert 0.0 < cost.action_share < 0.2
        assert quantize.loss(reference, reference, cases(2), moments).action_worst == 0.0

    def test_only_the_trunk_is_quantized(self, files: dict[str, Path]) -> None:
        chosen = quantize.chosen_nodes(files["video_step"])
        assert len(chosen) == 2 + 4 * TOY.layers - 1, (
            "text rows excluded where narrow; qkv, out, up, down of each layer"
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_card_says_what_it_is_and_how_it_learned(family: str) -> None:
    card = release.card(family, {"family": family, "recipe": {"seed": 12}}, "A note of ours.")
    assert card.startswith("# A small ")
    assert "Sim-supervised frame tokenizer" in card
    assert "A note of ours." in card
    assert '"seed": 12' in card
    others = [release.KINDS[name][0] for name in FAMILIES if name != family]
    assert release.KINDS[family][0] in card
    assert not any(kind in card for kind in others)
