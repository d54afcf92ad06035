"""Latency tables: what is drawn is what was measured, and what is written can be read again."""

import json

import numpy as np
import pytest

from dzedge import latency
from dzedge.errors import UsageError
from dzedge.latency import DEFAULT, POINTS, Latency


def draws_ms(table: Latency, count: int, seed: int = 5) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(key=[seed, 0]))
    return np.array([table.draw_ns(random) for _ in range(count)]) * 1e-6


def test_draws_are_distributed_as_the_samples():
    samples = np.random.default_rng(1).gamma(2.0, 4.0, 500)
    drawn = draws_ms(Latency.of(samples, "x", 500), 20_000)
    assert samples.min() <= drawn.min() + 1e-3 and drawn.max() <= samples.max() + 1e-3
    for share in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(drawn, share) == pytest.approx(np.quantile(samples, share), rel=0.06)


def test_draws_repeat_and_differ_by_seed():
    np.testing.assert_array_equal(draws_ms(DEFAULT, 10), draws_ms(DEFAULT, 10))
    assert (draws_ms(DEFAULT, 10) != draws_ms(DEFAULT, 10, seed=6)).any()


def test_the_default_has_the_tail_of_a_busy_board():
    assert (DEFAULT.quantiles_ms[0], DEFAULT.quantiles_ms[50], DEFAULT.quantiles_ms[100]) == (3.0, 4.0, 35.0)
    assert DEFAULT.decisions == 0


def test_one_sample_is_always_drawn():
    assert set(draws_ms(Latency.of([7.5], "x", 1), 20)) == {7.5}


class TestRead:
    def test_bare_and_out_of_a_document(self, tmp_path):
        mine, other = Latency.of([1.0, 3.14159], "mine", 2), Latency.of([9.0], "other", 1)
        bare, whole = tmp_path / "bare.json", tmp_path / "whole.json"
        bare.write_text(json.dumps(mine.document()))
        entries = [{"policy": table.policy, "latency": table.document()} for table in (other, mine)]
        whole.write_text(json.dumps({"results": entries}))
        assert latency.read(bare, "mine") == latency.read(whole, "mine") == mine
        assert latency.read(whole, "other") == other
        with pytest.raises(UsageError, match="has no latency of third"):
            latency.read(whole, "third")

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"quantiles_ms": [1.0]}, "quantiles_ms"),
            ({"quantiles_ms": [2.0] * (POINTS - 1) + [1.0]}, "must not fall"),
            ({"quantiles_ms": [-1.0] * POINTS}, "quantiles_ms"),
            ({"quantiles_ms": [float("nan")] * POINTS}, "finite"),
            ({"decisions": "many"}, "decisions"),
            ({"unit": "ms"}, "unknown key"),
        ],
    )
    def test_what_is_no_table_is_refused(self, tmp_path, change, words):
        file = tmp_path / "table.json"
        file.write_text(json.dumps(DEFAULT.document() | change))
        with pytest.raises(UsageError, match=words):
            latency.read(file, "x")

    def test_no_file_and_no_json(self, tmp_path):
        (tmp_path / "text").write_text("fast")
        for name in ("absent", "text"):
            with pytest.raises(UsageError, match=f"--latency .*{name}: cannot be read"):
                latency.read(tmp_path / name, "x")
