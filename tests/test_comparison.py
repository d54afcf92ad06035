"""Pairing of two evaluations: equal scenes only, and the interval of what differs."""

import io
import json

import pytest
from rich.console import Console

from dzedge import comparison
from dzedge.errors import UsageError
from dzedge.proportion import paired

SPLITS = ("seen", "novel")


def entry(policy: str, successes: str, **settings) -> dict:
    """Scenes in turn of split seen and novel; "1": success."""
    episodes = [
        {"seed": i, "task": f"task {i}", "split": SPLITS[i % 2], "success": char == "1"}
        for i, char in enumerate(successes)
    ]
    return {"policy": policy, "settings": {"execute": None, "prefix": True} | settings, "episodes": episodes}


@pytest.fixture
def write(tmp_path):
    def document(name: str, *entries: dict):
        path = tmp_path / name
        path.write_text(json.dumps({"results": entries}))
        return path

    return document


def test_difference_by_split_and_in_all(write):
    #                                  seen: 1101, novel: 1100        seen: 1001, novel: 0100
    first, second = write("a", entry("wam", "11110010")), write("b", entry("wam", "10010010", prefix=False))
    (pairing,) = comparison.compare(first, second)
    assert pairing["differing"] == {"prefix": [True, False]}
    seen, novel, whole = pairing["seen"], pairing["novel"], pairing["all"]
    assert (seen["n"], seen["first"], seen["second"], seen["only_first"], seen["only_second"]) == (4, 0.75, 0.5, 1, 0)
    assert (novel["first"], novel["second"]) == (0.5, 0.25)
    assert whole["difference"] == 0.25 and (whole["low"], whole["high"]) == paired(3, 2, 0, 3)
    assert "+0.250" in rendered(pairing) and "prefix True against False" in rendered(pairing)


def rendered(pairing) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(comparison.table(pairing))
    return out.getvalue()


def test_order_does_not_matter_and_two_policies_may_be_paired(write):
    turned = entry("vla", "0011")
    turned["episodes"].reverse()
    (pairing,) = comparison.compare(write("a", entry("wam", "1111")), write("b", turned))
    assert (pairing["first"], pairing["second"]) == ("wam", "vla")
    assert pairing["all"]["difference"] == 0.5 and pairing["all"]["only_first"] == 2
    assert pairing["differing"] == {}


def test_of_several_policies_those_of_one_name_are_paired(write):
    first = write("a", entry("wam", "11"), entry("vla", "01"))
    second = write("b", entry("vla", "00"), entry("other", "11"))
    (pairing,) = comparison.compare(first, second)
    assert pairing["first"] == pairing["second"] == "vla" and pairing["all"]["difference"] == 0.5


class TestRefusals:
    def test_other_scenes(self, write):
        with pytest.raises(UsageError, match="1 scenes or tasks are in one only"):
            comparison.compare(write("a", entry("wam", "111")), write("b", entry("wam", "11")))

    def test_no_policy_in_common(self, write):
        first = write("a", entry("wam", "1"), entry("vla", "1"))
        with pytest.raises(UsageError, match="no policy is in both"):
            comparison.compare(first, write("b", entry("x", "1"), entry("y", "1")))

    @pytest.mark.parametrize("text", ["", "[]", "{}", '{"results": [{}]}', '{"results": 3}'])
    def test_what_is_no_document(self, write, tmp_path, text):
        (tmp_path / "bad").write_text(text)
        with pytest.raises(UsageError, match=r"--pair .*bad: no document"):
            comparison.compare(write("a", entry("wam", "1")), tmp_path / "bad")

    def test_no_file(self, write, tmp_path):
        with pytest.raises(UsageError, match="absent"):
            comparison.compare(tmp_path / "absent", write("b", entry("wam", "1")))
