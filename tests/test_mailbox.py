"""Mailboxes: whole records only, whoever is killed, however fast the writer is."""

import mmap
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from dzedge.kernels.mailbox import ChunkBox, FrameRing, Ring, StateRing, TrajectoryBox

WRITER = textwrap.dedent(
    """
    import mmap, sys
    import numpy as np
    from dzedge.kernels.mailbox import FrameRing
    ring = FrameRing(mmap.mmap(int(sys.argv[1]), 0), 3, 60, 80)
    ring.adopt()
    image = np.empty((60, 80, 3), np.uint8)
    number = ring.count
    while True:
        image[:] = number % 251
        ring.put(image, number, number * 7, number * 7 + 1)
        number += 1
    """
)


@pytest.fixture
def frames_fd():
    fd = os.memfd_create("frames")
    os.ftruncate(fd, FrameRing.bytes_for(3, 60, 80))
    yield fd
    os.close(fd)


def start_writer(fd: int) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(fd)], pass_fds=[fd])


def test_a_reader_sees_only_whole_frames_of_a_fast_writer_in_another_process(frames_fd):
    ring = FrameRing(mmap.mmap(frames_fd, 0), 3, 60, 80)
    writer = start_writer(frames_fd)
    try:
        seen = 0
        last = 0
        while seen < 2000:
            record = ring.newest(after=last)
            if record is None:
                continue
            last, image, number, capture_ns, receive_ns = record
            assert (image == number % 251).all()
            assert (capture_ns, receive_ns) == (number * 7, number * 7 + 1)
            assert number == last - 1
            seen += 1
    finally:
        writer.kill()
        writer.wait()


def test_a_killed_writer_blocks_nobody_and_its_successor_goes_on(frames_fd):
    ring = FrameRing(mmap.mmap(frames_fd, 0), 3, 60, 80)
    numbers = []
    for life in range(1, 6):
        writer = start_writer(frames_fd)
        before = ring.count
        while ring.count < before + 50:
            pass
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert ring.epoch == life
        record = ring.newest()
        assert record is not None
        assert (record[1] == record[2] % 251).all()
        numbers.append(record[2])
    assert numbers == sorted(numbers)


def test_a_record_begun_and_never_published_is_never_seen():
    ring = Ring(bytearray(Ring.size(2, 8)), 2, 8)
    ring.write(b"abcdefgh", (1,))
    assert ring.read()[0] == 1
    for index in range(5):
        ring.write(bytes([65 + index]) * 8, (index,))
    assert bytes(ring.read()[1]) == b"E" * 8
    assert ring.read(0) is None  # overwritten: gone, not wrong
    assert ring.read(99) is None


def test_a_buffer_of_another_shape_is_refused():
    memory = bytearray(Ring.size(2, 64))
    Ring(memory, 2, 64)
    with pytest.raises(ValueError, match="differ in version or shape"):
        Ring(memory, 2, 32)
    with pytest.raises(ValueError, match=r"needed \d+"):
        Ring(bytearray(10), 2, 64)


def test_chunk_box_gives_back_what_was_put():
    box = ChunkBox(bytearray(ChunkBox.bytes_for(8, 6, 12)), 8, 6, 12)
    assert box.newest() is None
    positions = np.arange(48.0).reshape(8, 6)
    latents = np.arange(12, dtype=np.float32)
    box.put(positions, latents, 5, 2, 1000, 100)
    count, got, imagined, chunk_id, epoch, t_obs_ns, dt_ns = box.newest()
    assert (count, chunk_id, epoch, t_obs_ns, dt_ns) == (1, 5, 2, 1000, 100)
    np.testing.assert_array_equal(got, positions)
    np.testing.assert_array_equal(imagined, latents)
    assert box.newest(after=1) is None
    with pytest.raises(ValueError, match=r"wanted \(8, 6\)"):
        box.put(np.zeros((8, 7)), latents, 6, 2, 0, 100)
    with pytest.raises(ValueError, match="wanted 12"):
        box.put(positions, np.zeros(3), 6, 2, 0, 100)


class TestStateRing:
    @pytest.fixture
    def ring(self):
        return StateRing(bytearray(StateRing.bytes_for(2)), 2)

    def fill(self, ring, count, start=0):
        for i in range(start, start + count):
            ring.append(i * 10, 3, i, 0, [i, -i], [0.5, 0.5], [i + 0.25, 2 * i])

    def test_interpolates_between_ticks(self, ring):
        self.fill(ring, 20)
        positions, velocities, command, time_ns = ring.at(55)
        np.testing.assert_allclose(positions, [5.5, -5.5])
        np.testing.assert_allclose(velocities, [0.5, 0.5])
        np.testing.assert_allclose(command, [5.75, 11.0])
        assert time_ns == 55

    def test_a_time_after_the_newest_gives_the_newest_with_its_own_time(self, ring):
        self.fill(ring, 20)
        positions, _, _, time_ns = ring.at(10_000)
        assert positions[0] == 19
        assert time_ns == 190

    def test_a_time_before_all_is_not_covered(self, ring):
        assert ring.at(5) is None
        self.fill(ring, 20, start=5)
        assert ring.at(10) is None

    def test_after_many_wraps_the_window_is_the_last_thousand(self, ring):
        self.fill(ring, 5000)
        assert ring.at(1000) is None
        assert ring.at(49_005)[0][0] == pytest.approx(4900.5)
        assert len(ring.since(0)) >= 1000
        assert [r[1] for r in ring.since(4998)] == [49_980, 49_990]


def test_trajectory_box_is_linear_between_knots_and_empty_at_first():
    box = TrajectoryBox(bytearray(TrajectoryBox.bytes_for(16, 2)), 16, 2)
    assert box.newest() is None
    knots = np.zeros((16, 2))
    knots[:4] = [[0, 0], [1, 2], [2, 4], [3, 6]]
    box.write(knots.reshape(-1).view(np.uint8), (1000, 10, 4, 7))
    np.testing.assert_allclose(box.at(1015), [1.5, 3.0])
    np.testing.assert_allclose(box.at(1030), [3, 6])
    assert box.at(1031) is None
    assert box.at(999) is None


@pytest.mark.parametrize(
    ("pixel_bytes", "shape", "kind"), [(3, (4, 6, 3), np.uint8), (2, (4, 6), np.uint16), (1, (4, 6), np.uint8)]
)
def test_colour_depth_and_infrared_frames_keep_shape_and_values(pixel_bytes, shape, kind):
    ring = FrameRing(bytearray(FrameRing.bytes_for(4, 4, 6, pixel_bytes)), 4, 4, 6, pixel_bytes)
    images = [np.random.default_rng(i).integers(0, np.iinfo(kind).max, shape, kind) for i in range(6)]
    for number, image in enumerate(images):
        ring.put(image, number, 10 * number, 10 * number + 1, 8000 + number, 32, 1)
    count, image, number, capture_ns, receive_ns, exposure_us, gain, domain = ring.frame()
    np.testing.assert_array_equal(image, images[5])
    assert image.dtype == kind
    assert (count, number, capture_ns, receive_ns, exposure_us, gain, domain) == (6, 5, 50, 51, 8005, 32, 1)
    assert ring.newest()[2:] == (5, 50, 51)
    assert ring.stamps() == [(3, 30), (4, 40), (5, 50)], "the slot that is written next is no longer promised"
    np.testing.assert_array_equal(ring.frame(3)[1], images[3])
    assert ring.frame(1) is None


def test_what_is_not_told_of_a_frame_is_unknown():
    ring = FrameRing(bytearray(FrameRing.bytes_for(2, 4, 6)), 2, 4, 6)
    ring.put(np.zeros((4, 6, 3), np.uint8), 1, 2, 3)
    assert ring.frame()[5:] == (-1, -1, -1)
    assert ring.stamps() == [(0, 2)]


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match=r"must be 3 \(colour\), 2 \(depth\), 1 \(infrared\)"):
        FrameRing(bytearray(4096), 2, 4, 6, 4)
    ring = FrameRing(bytearray(FrameRing.bytes_for(2, 4, 6, 2)), 2, 4, 6, 2)
    for image in (np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8), np.zeros((6, 4), np.uint16)):
        with pytest.raises(ValueError, match="2 bytes a pixel"):
            ring.put(image, 1, 2, 3)
