"""Observations: the newest frame and the one 0.2 s before it, whatever the camera drops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dzedge.observation import ObservationBuilder
from dzedge.types import Frame, Observation

MS = 1_000_000
HISTORY = (200 * MS, 0)


def frame(number: int, capture_ns: int) -> Frame:
    return Frame(np.zeros((2, 2, 3), np.uint8), number, capture_ns, capture_ns + 5 * MS)


def builder(*captures_ms: int) -> ObservationBuilder:
    made = ObservationBuilder(HISTORY)
    made.begin("reach the red cube", 3)
    for number, capture in enumerate(captures_ms):
        made.add(frame(number, capture * MS))
    return made


def build(made: ObservationBuilder) -> Observation:
    return made.build(np.arange(6.0), np.zeros(6), made.newest_ns)


class TestFrames:
    def test_newest_last_and_the_one_before_it(self) -> None:
        found = build(builder(1000, 1067, 1133, 1200, 1267))
        assert [f.number for f in found.frames] == [1, 4]
        assert found.t_obs_ns == 1267 * MS

    def test_nearest_wins_when_frames_are_dropped(self) -> None:
        assert [f.number for f in build(builder(1000, 1040, 1110, 1267)).frames] == [1, 3]

    def test_first_frame_is_alone(self) -> None:
        assert [f.number for f in build(builder(1000)).frames] == [0]

    def test_no_history_near_enough(self) -> None:
        assert [f.number for f in build(builder(1000, 1067)).frames] == [1]
        assert [f.number for f in build(builder(1000, 1400)).frames] == [1]

    def test_after_a_gap_history_comes_back(self) -> None:
        assert [f.number for f in build(builder(1000, 2000, 2067, 2133, 2200)).frames] == [1, 4]

    def test_a_policy_without_history(self) -> None:
        made = ObservationBuilder((0,))
        for number in range(5):
            made.add(frame(number, number * 67 * MS))
        assert [f.number for f in build(made).frames] == [4]

    @given(gaps=st.lists(st.integers(1, 500), min_size=1, max_size=100))
    def test_frames_are_in_order_of_time(self, gaps: list[int]) -> None:
        captures = np.cumsum(gaps)
        found = build(builder(*captures.tolist()))
        times = [f.capture_ns for f in found.frames]
        assert times == sorted(set(times))
        assert times[-1] == found.t_obs_ns == captures[-1] * MS
        if len(times) == 2:
            assert 100 * MS <= times[1] - times[0] <= 300 * MS


class TestTime:
    @pytest.mark.parametrize("late_ms", [1267, 1266, 500])
    def test_repeated_or_older_frames_are_refused(self, late_ms: int) -> None:
        made = builder(1000, 1267)
        assert made.add(frame(9, late_ms * MS)) is False
        assert made.newest_ns == 1267 * MS

    def test_before_the_first_frame(self) -> None:
        made = builder()
        assert made.newest_ns == -1
        with pytest.raises(ValueError, match="no frame yet"):
            build(made)


class TestTask:
    def test_observation_carries_task_and_state(self) -> None:
        found = build(builder(1000))
        assert (found.instruction, found.epoch) == ("reach the red cube", 3)
        assert found.state.positions.tolist() == [0, 1, 2, 3, 4, 5]
        assert found.state.time_ns == found.t_obs_ns

    def test_a_new_task_forgets_the_old_scene(self) -> None:
        made = builder(1000, 1067, 1133, 1200)
        made.begin("push the blue cube left", 4)
        assert made.newest_ns == -1
        made.add(frame(7, 1267 * MS))
        assert [f.number for f in build(made).frames] == [7]
