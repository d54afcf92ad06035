"""Timing marks: histogram error, percentiles against NumPy, the event ring, shared memory."""

import mmap
import os
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dzedge.kernels.marks import Marks, bucket_bounds


@pytest.fixture
def marks() -> Marks:
    return Marks(bytearray(Marks.bytes_for()))


class TestHistogram:
    @given(value=st.integers(1_000, 100_000_000_000))
    @settings(max_examples=300, deadline=None)
    def test_value_is_kept_to_one_percent(self, value: int) -> None:
        low, high = bucket_bounds()
        marks = Marks(bytearray(Marks.bytes_for()))
        marks.record("policy", value)
        (index,) = np.flatnonzero(marks.histogram("policy"))
        assert low[index] <= value < high[index]
        assert abs((low[index] + high[index]) // 2 - value) <= 0.01 * value

    def test_buckets_tile_the_axis(self) -> None:
        low, high = bucket_bounds()
        assert low[0] == 0
        np.testing.assert_array_equal(low[1:], high[:-1])
        assert high[-1] == 1 << 37

    @pytest.mark.parametrize("q", [0, 1, 50, 90, 99, 99.9, 100])
    def test_percentiles_match_numpy(self, marks: Marks, q: float) -> None:
        values = np.random.default_rng(1).lognormal(14, 1.5, 5000).astype(np.int64)
        for value in values:
            marks.record("policy", int(value))
        expected = np.percentile(values, q, method="inverted_cdf")
        assert marks.percentile("policy", q) == pytest.approx(expected, rel=0.01)

    def test_summary_names_only_stages_that_recorded(self, marks: Marks) -> None:
        for value in (1_000_000, 2_000_000, 3_000_000):
            marks.record("encode", value)
        summary = marks.summary()
        assert list(summary) == ["encode"]
        assert summary["encode"]["count"] == 3
        assert summary["encode"]["mean_ns"] == pytest.approx(2_000_000, rel=0.01)
        assert summary["encode"]["max_ns"] == 3_000_000

    @pytest.mark.parametrize(("value", "kept"), [(-5, 0), (10**12, (1 << 37) - 1)])
    def test_out_of_range_is_clipped_and_counted(self, marks: Marks, value: int, kept: int) -> None:
        marks.record("late", value)
        assert marks.clipped == 1
        assert marks.summary()["late"]["max_ns"] == kept

    def test_nothing_recorded_gives_zero(self, marks: Marks) -> None:
        assert marks.percentile("late", 99) == 0
        assert marks.summary() == {}


class TestEvents:
    def test_event_holds_time_stage_value(self, marks: Marks) -> None:
        before = time.monotonic_ns()
        marks.record("encode", 1234)
        marks.remark("drops", 7)
        events = marks.events()
        assert [marks.names[s] for s in events["stage"]] == ["encode", "drops"]
        assert events["value"].tolist() == [1234, 7]
        assert events["kind"].tolist() == [0, 1]
        assert np.all((before <= events["time_ns"]) & (events["time_ns"] <= time.monotonic_ns()))

    def test_ring_keeps_the_newest(self, marks: Marks) -> None:
        for value in range(20_000):
            marks.record("late", value)
        np.testing.assert_array_equal(marks.events()["value"], np.arange(20_000 - 16_384, 20_000))

    def test_an_event_is_sixteen_bytes(self, marks: Marks) -> None:
        assert marks.events().dtype.itemsize == 16

    def test_long_value_saturates_in_the_event_only(self, marks: Marks) -> None:
        marks.record("late", 10**10)
        assert marks.events()["value"][0] == 2**32 - 1
        assert marks.summary()["late"]["max_ns"] == 10**10

    def test_clear_keeps_names(self, marks: Marks) -> None:
        marks.record("encode", 1)
        marks.clear()
        assert len(marks.events()) == 0
        assert marks.summary() == {}
        assert "encode" in marks.names


class TestSpan:
    def test_span_measures_its_body(self, marks: Marks) -> None:
        with marks.span("policy"):
            time.sleep(0.01)
        assert marks.summary()["policy"]["max_ns"] >= 10_000_000

    def test_span_records_and_passes_on_a_failure(self, marks: Marks) -> None:
        with pytest.raises(KeyError), marks.span("policy"):
            raise KeyError
        assert marks.summary()["policy"]["count"] == 1


class TestMemory:
    def test_another_mapping_reads_what_was_written(self) -> None:
        fd = os.memfd_create("marks")
        os.ftruncate(fd, Marks.bytes_for())
        with mmap.mmap(fd, Marks.bytes_for()) as first, mmap.mmap(fd, Marks.bytes_for()) as second:
            writer, reader = Marks(first), Marks(second)
            writer.record("encode", 5_000_000)
            assert reader.summary()["encode"]["count"] == 1
            assert reader.names == writer.names
            del writer, reader
        os.close(fd)

    def test_threads_lose_nothing(self, marks: Marks) -> None:
        def write() -> None:
            for value in range(5_000):
                marks.record("late", value)

        threads = [threading.Thread(target=write) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert marks.summary()["late"]["count"] == 20_000

    def test_wrong_buffers_are_refused(self) -> None:
        with pytest.raises(ValueError, match="bytes"):
            Marks(bytearray(100))
        with pytest.raises(ValueError, match="version"):
            Marks(bytearray(b"\1" * Marks.bytes_for()))

    def test_stage_names_are_bounded(self, marks: Marks) -> None:
        with pytest.raises(ValueError, match="characters"):
            marks.stage("x" * 24)
        with pytest.raises(ValueError, match="32 fit"):
            for index in range(40):
                marks.stage(f"stage{index}")
