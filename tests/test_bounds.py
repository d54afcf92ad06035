"""Bounds of an export: a strict table, one family's exceptions, and a sentence for each bound that is broken."""

from pathlib import Path

import pytest

from dzedge.errors import UsageError
from dzedge.export import bounds, making, parity


def written(folder: Path, text: str) -> bounds.Bounds:
    path = folder / "mine.toml"
    path.write_text(text)
    return bounds.read(path)


class TestTable:
    def test_the_shipped_one_bounds_what_is_promised(self) -> None:
        found = bounds.read()
        assert found.of("wam", "fp32").graph == parity.TOLERANCE == 1e-5
        assert found.of("wam", "int8").action_share == 0.02
        assert found.of("wam", "int8").step_bytes == 0.32
        assert found.of("wam", "fp32").action_share < found.of("wam", "fp16").action_share

    def test_one_family_replaces_only_the_keys_that_it_names(self, tmp_path: Path) -> None:
        found = written(tmp_path, "[int8]\naction_share = 0.02\nworst_rad = 0.1\n[dual_vla.int8]\nworst_rad = 0.3\n")
        assert (found.of("dual_vla", "int8").action_share, found.of("dual_vla", "int8").worst_rad) == (0.02, 0.3)
        assert found.of("wam", "int8").worst_rad == 0.1
        assert found.of("wam", "fp16") == bounds.Bound(), "no table, no bound"

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("[int8]\naction = 1.0\n", "int8.action: unknown key; did you mean `action_share`"),
            ("[int7]\ngraph = 1.0\n", "int7: unknown key; did you mean `int8`"),
            ("[wam.int8]\ngraph = -1.0\n", r"wam: int8.graph = -1.0: must be a number in \(0, 1e\+06\]"),
            ("[int8]\ngraph = nan\n", "int8.graph = nan: must be a finite number"),
            ("[int8\n", "no table of bounds"),
        ],
    )
    def test_what_is_wrong_in_it_is_named(self, tmp_path: Path, text: str, says: str) -> None:
        with pytest.raises(UsageError, match=says):
            written(tmp_path, text)

    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"nowhere\.toml: no table of bounds"):
            bounds.read(tmp_path / "nowhere.toml")


class TestBroken:
    @pytest.fixture
    def limits(self, tmp_path: Path) -> bounds.Bounds:
        return written(tmp_path, "[int8]\ngraph = 0.5\naction_share = 0.02\nworst_rad = 0.1\nimagined_mm = 5.0\n")

    def test_nothing(self, limits: bounds.Bounds) -> None:
        kept = {"graph": 0.5, "action_share": 0.019, "worst_rad": 0.1, "imagined_mm": None, "step_bytes": 9.0}
        assert limits.broken("wam", "int8", kept, "x") == []

    def test_each_has_its_sentence(self, limits: bounds.Bounds) -> None:
        lost = {"graph": 0.1, "action_share": 0.021, "worst_rad": float("nan"), "imagined_mm": 7.0}
        share, worst, dream = limits.broken("wam", "int8", lost, "int8 (avx2)")
        assert share.startswith("int8 (avx2): action_share 0.021, allowed 0..0.02 ([int8] in mine.toml); calibrate")
        assert "worst_rad not a number, allowed 0..0.1" in worst
        assert dream.endswith("leave the video graph or the encoder in a higher precision")
        assert limits.broken("wam", "fp16", lost, "fp16") == [], "another precision has other bounds"


class TestStaged:
    def test_takes_the_place_of_the_old_one(self, tmp_path: Path) -> None:
        out = tmp_path / "a.dzp"
        for text in ("one", "two"):
            with making.staged(out) as folder:
                (folder / "file").write_text(text)
        assert (out / "file").read_text() == "two"
        assert [path.name for path in tmp_path.iterdir()] == ["a.dzp"]

    def test_leaves_the_old_one_where_something_fails(self, tmp_path: Path) -> None:
        out = tmp_path / "a.dzp"
        with making.staged(out) as folder:
            (folder / "file").write_text("one")
        with pytest.raises(bounds.BoundError), making.staged(out) as folder:
            (folder / "file").write_text("two")
            raise bounds.BoundError("too much")
        assert (out / "file").read_text() == "one"
        assert [path.name for path in tmp_path.iterdir()] == ["a.dzp"]
        assert bounds.BoundError.exit_code == parity.ParityError.exit_code == 1
