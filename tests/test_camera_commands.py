"""`dzedge camera ...` as a person or a script calls it: exit codes, one JSON document, files in their places."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dzedge import cli
from dzedge.hardware import sources
from dzedge.hardware.camera import CameraInfo
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.sources import Source

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """`call("list", "--json")` -> (exit code, stdout, stderr), in a folder of its own, on a machine without cameras."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DZEDGE_TRACEBACK", raising=False)
    monkeypatch.setattr(sources.Sources, "_realsenses", lambda self: [])
    monkeypatch.setattr(sources.Sources, "_webcams", lambda self: [])

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dzedge", "camera", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def document(answer: tuple[int, str, str]) -> dict:
    code, out, _ = answer
    (line,) = out.splitlines()
    assert code == json.loads(line).get("exit_code", 0)
    return json.loads(line)


class TestList:
    def test_a_machine_without_cameras(self, call: Call) -> None:
        code, out, _ = call("list")
        assert code == 0 and "no camera attached; look at the simulated one" in out
        told = document(call("list", "--json"))
        (camera,) = told["cameras"]
        assert (camera["driver"], camera["modes"]) == (
            "sim", [{"width": 160, "height": 120, "fps": 15, "format": "rgb8"}],
        )  # fmt: skip

    def test_a_poor_link_is_flagged(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        info = CameraInfo("Intel RealSense D405", "2305", "5.16.0.1", "2.1", "usb1")
        modes = tuple(Mode(640, 480, fps, name) for name in ("rgb8", "yuyv") for fps in (5, 15))
        found = [Source("realsense", info, modes, sources.usb_trouble(info))]
        monkeypatch.setattr(sources.Sources, "_realsenses", lambda self: found)
        _, out, _ = call("list")
        told = ("2305", "5.16.0.1", "640x480 rgb8 at 5/15 fps, yuyv at 5/15 fps", "on a USB 2.1 link, needed 3")
        for words in told:
            assert words in out, words
        camera = document(call("list", "--json"))["cameras"][0]
        assert (camera["usb"], camera["firmware"]) == ("2.1", "5.16.0.1") and "needed 3" in camera["trouble"]


class TestShow:
    def test_a_png(self, call: Call, tmp_path: Path) -> None:
        told = document(call("show", "sim", "--out", "a.png", "--json"))
        assert (told["serial"], told["files"], told["mode"]["width"]) == ("sim", ["a.png"], 160)
        image = np.asarray(Image.open(tmp_path / "a.png"))
        assert image.shape == (120, 160, 3)
        assert abs(float(image.mean()) - told["brightness"]) < 0.1

    def test_scenes_differ_by_their_seed(self, call: Call, tmp_path: Path) -> None:
        for seed in ("0", "1"):
            assert call("show", "sim", "--seed", seed, "--out", f"{seed}.png")[0] == 0
        first, second = (np.asarray(Image.open(tmp_path / f"{seed}.png")).astype(int) for seed in (0, 1))
        assert np.abs(first - second).max() > 50

    @pytest.mark.parametrize(
        ("arguments", "code", "words"),
        [
            (("show", "sim"), 2, "no terminal with colours to show a picture on; write it to a file: --out"),
            (("show", "sim", "--out", "a.jpg"), 2, "--out a.jpg: must end in .png"),
            (("show", "sim", "--out", "none/a.png"), 2, "none/a.png: cannot be written"),
            (("show", "sim", "--watch", "--json"), 2, "--watch shows pictures in the terminal only"),
            (("show", "sim", "--format", "h264"), 2, "--format h264: must be one of bgr8, grey, mjpeg, rgb8, yuyv"),
            (("show",), 3, "no camera attached; found: none"),
            (("show", "123"), 3, "camera 123: not attached; found: none"),
            (("show", "/dev/video-none"), 3, "/dev/video-none: not there; see `dzedge camera list`"),
            (("show", "none.db3"), 3, "recording none.db3: not there"),
            (("show", "so101.toml"), 2, "given with --robot"),
            (("show", "--robot", "none.toml"), 2, "cannot read the robot file"),
        ],
    )
    def test_refusals(self, call: Call, arguments: tuple[str, ...], code: int, words: str) -> None:
        ended, out, err = call(*arguments)
        assert ended == code and words in err
        assert out == "" or json.loads(out)["exit_code"] == code


class TestRecord:
    def test_what_was_recorded_can_be_shown(self, call: Call, tmp_path: Path) -> None:
        told = document(call("record", "sim", "--out", "a.db3", "--seconds", "1", "--json"))
        assert told["files"] == ["a.db3"] and told["bytes"] == (tmp_path / "a.db3").stat().st_size
        assert 5 <= told["frames"] <= 40
        shown = document(call("show", "a.db3", "--out", "a.png", "--json"))
        assert (shown["driver"], shown["serial"], shown["name"]) == ("playback", "sim", told["name"])
        image = np.asarray(Image.open(tmp_path / "a.png")).astype(int)
        assert call("show", "sim", "--out", "b.png")[0] == 0
        assert np.abs(image - np.asarray(Image.open(tmp_path / "b.png")).astype(int)).mean() < 5

    def test_never_overwrites(self, call: Call, tmp_path: Path) -> None:
        (tmp_path / "a.db3").write_bytes(b"precious")
        code, _, err = call("record", "sim", "--out", "a.db3")
        assert code == 2 and "is there already" in err
        assert (tmp_path / "a.db3").read_bytes() == b"precious"

    def test_recordings_are_not_recorded(self, call: Call) -> None:
        call("record", "sim", "--out", "a.db3", "--seconds", "0.3", "--raw")
        code, _, err = call("record", "a.db3", "--out", "b.db3")
        assert code == 2 and 'driver "playback" cannot record' in err


class TestLatency:
    @pytest.mark.slow
    def test_rehearsal_recovers_the_true_delay(self, call: Call) -> None:
        told = document(call("latency", "sim", "--delay", "150", "--seconds", "2", "--json"))
        assert told["true_ms"] == 150.0 and told["read"] >= 5
        assert abs(told["glass_to_host_ms"]["p50"] - 150.0) < 1000 / told["mode"]["fps"]
        assert told["glass_to_stamp_ms"]["p50"] < 70

    def test_needs_a_terminal(self, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_terminal() -> None:
            raise cli.UsageError("no terminal to show the code on")

        monkeypatch.setattr("dzedge.glass.Terminal", no_terminal)
        call("record", "sim", "--out", "a.db3", "--seconds", "0.3")
        code, out, err = call("latency", "a.db3")
        assert (code, out) == (2, "") and "no terminal" in err

    def test_help_says_how(self, call: Call) -> None:
        _, out, _ = call("latency", "--help")
        assert "point the camera at it" in " ".join(out.split())
