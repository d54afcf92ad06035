"""The layouts of Video4Linux2 against what a C compiler makes of the kernel's header."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dzedge.hardware import videodev
from dzedge.hardware.videodev import LinuxKernel

STRUCTURES = {
    "v4l2_capability": (videodev.Capability, {"card": "card", "bus_info": "bus_info", "device_caps": "device_caps"}),
    "v4l2_fmtdesc": (videodev.FormatDescription, {"description": "description", "pixelformat": "pixelformat"}),
    "v4l2_frmsizeenum": (videodev.FrameSize, {"type": "type", "sizes": "discrete.width"}),
    "v4l2_frmivalenum": (videodev.FrameInterval, {"type": "type", "interval": "discrete.numerator"}),
    "v4l2_pix_format": (videodev.PixelFormat, {name: name for name, _ in videodev.PixelFormat._fields_}),
    "v4l2_format": (videodev.Format, {"type": "type", "fmt": "fmt"}),
    "v4l2_streamparm": (videodev.StreamParameters, {"parm": "parm"}),
    "v4l2_captureparm": (
        videodev.CaptureParameters,
        {"numerator": "timeperframe.numerator", "denominator": "timeperframe.denominator", "capability": "capability"},
    ),
    "v4l2_requestbuffers": (videodev.RequestBuffers, {"memory": "memory", "flags": "flags"}),
    "v4l2_buffer": (
        videodev.Buffer,
        {"seconds": "timestamp.tv_sec", "microseconds": "timestamp.tv_usec", "sequence": "sequence", "m": "m.offset",
         "length": "length", "bytesused": "bytesused", "request_fd": "request_fd", "field": "field"},
    ),
    "v4l2_control": (videodev.Control, {"id": "id", "value": "value"}),
}  # fmt: skip
REQUESTS = list(videodev.NAMES.values())
CONSTANTS = {
    "V4L2_BUF_TYPE_VIDEO_CAPTURE": videodev.CAPTURE,
    "V4L2_MEMORY_MMAP": videodev.MEMORY_MMAP,
    "V4L2_CAP_VIDEO_CAPTURE": videodev.CAN_CAPTURE,
    "V4L2_CAP_STREAMING": videodev.CAN_STREAM,
    "V4L2_CAP_DEVICE_CAPS": videodev.HAS_DEVICE_CAPS,
    "V4L2_CAP_TIMEPERFRAME": videodev.CAN_TIME_PER_FRAME,
    "V4L2_FIELD_NONE": videodev.FIELD_NONE,
    "V4L2_FRMSIZE_TYPE_DISCRETE": videodev.DISCRETE,
    "V4L2_FRMIVAL_TYPE_DISCRETE": videodev.DISCRETE,
    "V4L2_BUF_FLAG_ERROR": videodev.FLAG_ERROR,
    "V4L2_BUF_FLAG_TIMESTAMP_MASK": videodev.TIMESTAMP_MASK,
    "V4L2_BUF_FLAG_TIMESTAMP_MONOTONIC": videodev.TIMESTAMP_MONOTONIC,
    "V4L2_CID_EXPOSURE_AUTO_PRIORITY": videodev.EXPOSURE_PRIORITY,
    "V4L2_PIX_FMT_YUYV": videodev.FOURCC["yuyv"],
    "V4L2_PIX_FMT_MJPEG": videodev.FOURCC["mjpeg"],
    "V4L2_PIX_FMT_GREY": videodev.FOURCC["grey"],
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """What the compiler says of every size, offset, request and constant."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    lines = [f'T("sizeof {name}", sizeof(struct {name}));' for name in STRUCTURES]
    for name, (_, fields) in STRUCTURES.items():
        lines += [f'T("{name}.{ours}", offsetof(struct {name}, {theirs}));' for ours, theirs in fields.items()]
    lines += [f'T("{name}", VIDIOC_{name});' for name in REQUESTS]
    lines += [f'T("{name}", {name});' for name in CONSTANTS]
    source = (
        "#include <linux/videodev2.h>\n#include <stddef.h>\n#include <stdio.h>\n"
        '#define T(name, value) printf("%s=%lu\\n", name, (unsigned long)(value))\n'
        "int main(void) {\n" + "\n".join(lines) + "\nreturn 0;\n}\n"
    )
    folder = tmp_path_factory.mktemp("videodev")
    (folder / "layout.c").write_text(source)
    made = subprocess.run([compiler, "layout.c", "-o", "layout"], cwd=folder, capture_output=True, text=True)
    if "videodev2.h: No such file" in made.stderr:
        pytest.skip("no kernel headers (linux-libc-dev)")
    assert made.returncode == 0, made.stderr
    out = subprocess.run([folder / "layout"], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in out.splitlines())}


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures(told: dict[str, int], name: str) -> None:
    structure, fields = STRUCTURES[name]
    assert ctypes.sizeof(structure) == told[f"sizeof {name}"]
    for ours in fields:
        assert getattr(structure, ours).offset == told[f"{name}.{ours}"], ours


def test_all_requests_have_names() -> None:
    assert {"QUERYCAP", "DQBUF", "STREAMON", "ENUM_FRAMEINTERVALS"} < set(REQUESTS) and len(REQUESTS) == 15


@pytest.mark.parametrize("name", REQUESTS)
def test_requests(told: dict[str, int], name: str) -> None:
    assert getattr(videodev, name) == told[name]
    assert videodev.NAMES[told[name]] == name


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(told: dict[str, int], name: str) -> None:
    assert CONSTANTS[name] == told[name] & 0xFFFFFFFF


class TestLinuxKernel:
    """The five system calls, on files that are no cameras: what can be had without one."""

    def test_absent(self) -> None:
        with pytest.raises(FileNotFoundError):
            LinuxKernel().open("/dev/video-of-nobody")

    def test_no_camera_says_so(self) -> None:
        kernel = LinuxKernel()
        fd = kernel.open("/dev/null")
        with pytest.raises(OSError, match="Inappropriate ioctl"):
            kernel.ioctl(fd, videodev.QUERYCAP, videodev.Capability())
        kernel.close(fd)

    def test_a_structure_comes_back_changed(self) -> None:
        # FIONREAD of a pipe fills an int, as QUERYCAP fills a structure.
        kernel, (source, sink) = LinuxKernel(), os.pipe()
        os.write(sink, b"abc")
        count = ctypes.c_int(0)
        kernel.ioctl(source, 0x541B, count)
        assert count.value == 3
        assert kernel.wait(source, 0) != 0
        os.read(source, 3)
        assert kernel.wait(source, 0) == 0
        kernel.close(source)
        kernel.close(sink)

    def test_mapped_memory_is_the_files(self, tmp_path: Path) -> None:
        kernel, path = LinuxKernel(), tmp_path / "memory"
        path.write_bytes(bytes(8192))
        fd = kernel.open(str(path))
        memory = kernel.map(fd, 4096, 4096)
        memory[:3] = b"abc"
        memory.close()
        kernel.close(fd)
        assert path.read_bytes()[4096:4099] == b"abc"
