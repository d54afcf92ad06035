"""Sentences to the letter: a checkpoint was trained on exactly these."""

import pytest

from dzedge.errors import UsageError
from dzedge.export.prompt_templates import TEMPLATES, cleaned, prompt


class TestSentences:
    def test_droid(self) -> None:
        assert prompt("oxe_droid", "Pick up the RED cube") == (
            "A multi-view video shows that a robot pick up the red cube The video is split into three views: The top "
            "view shows the camera view from the robot's wrist, the bottom-left view shows the camera view from the "
            "left exterior camera, and the bottom-right view shows the camera view from the right exterior camera. "
            "During training, one of the two bottom exterior views may be a black screen (dropped view). The robot "
            "pick up the red cube"
        )

    def test_agibot_and_xdof(self) -> None:
        expected = (
            "A multi-view video shows that a robot wave The video is split into four views: The top-left view shows "
            "the camera view from the robot's head, the top-right view shows the camera view from the right hand, the "
            "bottom-left view shows the camera view from the left hand, and the bottom-right view is a black screen "
            "(inactive view). The robot wave"
        )
        assert prompt("agibot", "wave") == prompt("xdof", "wave") == expected

    def test_yam(self) -> None:
        assert prompt("yam", "wave") == (
            "A multi-view video shows that a robot wave The video is split into four views: The top-left view shows "
            "the top camera, the top-right view shows the right camera, the bottom-left view shows the left camera, "
            "and the bottom-right view is a black screen. The robot wave"
        )

    @pytest.mark.parametrize("tag", ["gr1_unified", "mecka_hands"])
    def test_single_view(self, tag: str) -> None:
        assert prompt(tag, "Wave") == "A single view video shows that a human wave"

    def test_the_task_is_said_in_every_one(self) -> None:
        for tag in TEMPLATES:
            assert prompt(tag, "xyzzy").count("xyzzy") == (1 if "single" in prompt(tag, "xyzzy") else 2)
            assert "{" not in prompt(tag, "xyzzy")

    def test_braces_of_an_instruction_stay(self) -> None:
        assert prompt("gr1_unified", "say {first}").endswith("say {first}")


class TestCleaning:
    def test_entities_twice_and_white_space(self) -> None:
        assert cleaned("  a &amp;lt; b\n\tc ") == "a < b c"


class TestErrors:
    def test_unknown_embodiment_names_the_known(self) -> None:
        with pytest.raises(UsageError, match=r"'so101'.*oxe_droid"):
            prompt("so101", "wave")

    def test_nothing_to_do(self) -> None:
        with pytest.raises(UsageError, match="empty"):
            prompt("oxe_droid", "  ")
