"""The board carries the task and the heartbeats."""

import pytest

from dzedge.kernels.board import Board


def test_board_carries_the_task_and_the_heartbeats():
    board = Board(bytearray(Board.BYTES))
    assert (board.epoch, board.instruction) == (0, "")
    assert board.set_task("reach the red cube — schnell", 42) == 1
    assert board.instruction == "reach the red cube — schnell"
    assert board.set_task("stop", 43) == 2
    assert (board.instruction, board.task_ns) == ("stop", 43)
    with pytest.raises(ValueError, match="shorten it"):
        board.set_task("x" * 249, 0)
    board.enter(2, 4711)
    board.stamp(2, 99, 5)
    assert board.stage(2) == (1, 99, 5, 4711, 1)
    assert board.stage(1) == (0, 0, 0, 0, 0)
    board.request = 3
    board.stopping = 1
    assert (board.request, board.stopping) == (3, 1)
