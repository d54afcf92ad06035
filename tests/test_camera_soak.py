"""The short form of `make camera-soak`: the same script, fewer rounds, where every bound but memory's can be missed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("camera_soak.py")


@pytest.mark.slow
def test_cameras_start_stop_and_end_with_the_process() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--starts", "20", "--exits", "4"], timeout=120, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    starts, exits = json.loads(done.stdout)
    assert (starts["files_left"], starts["threads_left"]) == (0, 0)
    assert exits["wrong"] == []
