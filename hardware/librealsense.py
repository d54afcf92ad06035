"""librealsense through its C API, as exported by the pyrealsense2 wheel's own library.

Python's binding is not used: its frame queue takes the GIL on the camera's thread at every frame, and its
objects do not reveal the handles that a thread without the GIL needs. The C API has neither trouble and has
been stable since 2.16. Signatures: librealsense2/h/*.h of 2.59. Every call releases the GIL.
"""

import ctypes
import ctypes.util
import functools
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dzedge.errors import CameraError

COLOR = 2
DEPTH = 1
FORMATS = {"z16": 1, "yuyv": 4, "rgb8": 5, "bgr8": 6}
INFO = {"name": 0, "serial": 1, "firmware": 2, "port": 4, "usb": 9, "product_line": 10}
OLDEST = 25500
"""Lowest API version accepted: 2.55.0, where every function below exists."""


class Intrinsics(ctypes.Structure):
    """rs2_intrinsics."""

    _fields_ = (
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("ppx", ctypes.c_float),
        ("ppy", ctypes.c_float),
        ("fx", ctypes.c_float),
        ("fy", ctypes.c_float),
        ("model", ctypes.c_int),
        ("coefficients", ctypes.c_float * 5),
    )


class VideoStream(ctypes.Structure):
    """rs2_video_stream."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("index", ctypes.c_int),
        ("uid", ctypes.c_int),
        ("width", ctypes.c_int),
        ("height", ctypes.c_int),
        ("fps", ctypes.c_int),
        ("bpp", ctypes.c_int),
        ("format", ctypes.c_int),
        ("intrinsics", Intrinsics),
    )


CODES: dict[str, Any] = {
    "v": None,
    "p": ctypes.c_void_p,
    "i": ctypes.c_int,
    "l": ctypes.c_longlong,
    "f": ctypes.c_float,
    "s": ctypes.c_char_p,
    "I": ctypes.POINTER(ctypes.c_int),
    "F": ctypes.POINTER(ctypes.c_float),
    "N": ctypes.POINTER(Intrinsics),
    "V": VideoStream,
}

# Result and arguments, without the rs2_error** that comes last in each.
CALLS = {
    "rs2_create_context": "p:i",
    "rs2_query_devices": "p:p",
    "rs2_get_device_count": "i:p",
    "rs2_create_device": "p:pi",
    "rs2_supports_device_info": "i:pi",
    "rs2_get_device_info": "s:pi",
    "rs2_hardware_reset": "v:p",
    "rs2_query_sensors": "p:p",
    "rs2_get_sensors_count": "i:p",
    "rs2_create_sensor": "p:pi",
    "rs2_supports_sensor_info": "i:pi",
    "rs2_get_sensor_info": "s:pi",
    "rs2_get_stream_profiles": "p:p",
    "rs2_get_stream_profiles_count": "i:p",
    "rs2_get_stream_profile": "p:pi",
    "rs2_get_stream_profile_data": "v:pIIIII",
    "rs2_get_video_stream_resolution": "v:pII",
    "rs2_get_video_stream_intrinsics": "v:pN",
    "rs2_supports_option": "i:pi",
    "rs2_set_option": "v:pif",
    "rs2_get_option": "f:pi",
    "rs2_get_option_range": "v:piFFFF",
    "rs2_open": "v:pp",
    "rs2_start_queue": "v:pp",
    "rs2_stop": "v:p",
    "rs2_close": "v:p",
    "rs2_create_frame_queue": "p:i",
    "rs2_create_software_device": "p:",
    "rs2_software_device_add_sensor": "p:ps",
    "rs2_software_device_register_info": "v:pis",
    "rs2_software_sensor_add_video_stream_ex": "p:pVi",
    "rs2_software_sensor_add_option": "v:piffffi",
    "rs2_software_sensor_set_metadata": "v:pil",
}

DELETERS = (
    "context",
    "device_list",
    "device",
    "sensor_list",
    "sensor",
    "stream_profiles_list",
    "frame_queue",
)

# Called by the kernels, by address.
PUMPED = (
    "rs2_try_wait_for_frame",
    "rs2_release_frame",
    "rs2_free_error",
    "rs2_get_error_message",
    "rs2_get_frame_number",
    "rs2_get_frame_timestamp",
    "rs2_get_frame_timestamp_domain",
    "rs2_supports_frame_metadata",
    "rs2_get_frame_metadata",
    "rs2_get_frame_data",
    "rs2_get_frame_data_size",
    "rs2_get_frame_width",
    "rs2_get_frame_height",
    "rs2_get_frame_stride_in_bytes",
    "rs2_get_frame_bits_per_pixel",
    "rs2_software_sensor_on_video_frame",
)


@dataclass(frozen=True, slots=True, order=True)
class Mode:
    """One video mode of a sensor's stream. width, height: [pixels]; fps: [Hz]."""

    width: int
    height: int
    fps: int
    format: str

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps} fps {self.format}"


class Library:
    """The loaded library: checked calls by name, and addresses for the kernels. Raises CameraError when it is
    missing, cannot be loaded, or is too old."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._dll = ctypes.CDLL(path)
        except OSError as error:
            raise CameraError(
                f"librealsense at {path}: cannot be loaded: {error}; install libusb-1.0-0 and libudev1, "
                "and take the wheel that fits this machine's glibc"
            ) from error
        missing = [name for name in (*CALLS, *PUMPED) if not hasattr(self._dll, name)]
        if missing:
            raise CameraError(
                f"librealsense at {path}: lacks {', '.join(missing)}; install pyrealsense2 >= 2.59.1"
            )
        self._calls = {name: self._bind(name, signature) for name, signature in CALLS.items()}
        self._calls["rs2_get_api_version"] = self._bind("rs2_get_api_version", "i:")
        self._message = self._plain("rs2_get_error_message", ctypes.c_char_p)
        self._free_error = self._plain("rs2_free_error", None)
        self._name_option = self._plain("rs2_option_to_string", ctypes.c_char_p, ctypes.c_int)
        self._deleters = {kind: self._plain(f"rs2_delete_{kind}", None) for kind in DELETERS}
        self.version: int = self.call("rs2_get_api_version")
        if not OLDEST <= self.version < 30000:
            raise CameraError(f"librealsense at {path}: API version {self.version}, needed {OLDEST} to 29999")

    def _plain(self, name: str, result: Any, argument: Any = ctypes.c_void_p) -> Any:
        function = getattr(self._dll, name)
        function.restype, function.argtypes = result, [argument]
        return function

    def _bind(self, name: str, signature: str) -> Any:
        result, arguments = signature.split(":")
        function = getattr(self._dll, name)
        function.restype = CODES[result]
        function.argtypes = [CODES[code] for code in arguments] + [ctypes.POINTER(ctypes.c_void_p)]
        return function

    def call(self, name: str, *arguments: Any) -> Any:
        """The result of C function `name`. Raises CameraError with librealsense's own words."""
        error = ctypes.c_void_p()
        result = self._calls[name](*arguments, ctypes.byref(error))
        if error:
            message = self._message(error).decode("utf-8", "replace")
            self._free_error(error)
            raise CameraError(f"librealsense {name.removeprefix('rs2_')}: {message}")
        return result

    def delete(self, kind: str, handle: int) -> None:
        """Give a handle of `kind` (context, device, sensor, frame_queue, ...) back."""
        self._deleters[kind](handle)

    def lease(self, owner: object, kind: str, handle: int) -> Callable[[], object]:
        """What gives `handle` back, once. It happens by itself when `owner` goes, but not at exit, where the
        streams must stop first."""
        release = weakref.finalize(owner, self.delete, kind, handle)
        release.atexit = False
        return release

    @contextmanager
    def held(self, kind: str, handle: int) -> Iterator[int]:
        """A handle that is given back at the end of the block."""
        try:
            yield handle
        finally:
            self.delete(kind, handle)

    @functools.cached_property
    def addresses(self) -> dict[str, int]:
        """Addresses of the functions that the kernels call."""
        return {name: ctypes.cast(getattr(self._dll, name), ctypes.c_void_p).value or 0 for name in PUMPED}

    @functools.cached_property
    def options(self) -> dict[str, int]:
        """Numbers of the options by name, e.g. `auto_exposure_priority`; they differ between versions."""
        names: dict[str, int] = {}
        for number in range(512):
            name = self._name_option(number).decode()
            if name == "UNKNOWN":
                break
            names.setdefault(name.lower().replace(" ", "_").replace("-", "_"), number)
        return names


@functools.lru_cache(maxsize=1)
def library() -> Library:
    """The library of the pyrealsense2 wheel, else of the system. Raises CameraError when there is none."""
    spec = importlib.util.find_spec("pyrealsense2")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for file in sorted(Path(folder).glob("pyrealsense2*.so")):
            return Library(str(file))
    system = ctypes.util.find_library("realsense2")
    if system is None:
        raise CameraError("librealsense: not installed; install dzedge[realsense]")
    return Library(system)


class Sensor:
    """One sensor of a camera. Its handle is given back by `close`, at the latest when the object goes."""

    def __init__(self, lib: Library, handle: int) -> None:
        self.lib, self.handle = lib, handle
        self._opened = self._started = False
        self._release = lib.lease(self, "sensor", handle)

    def modes(self, stream: int = COLOR) -> list[Mode]:
        """The modes in which it can deliver `stream`, sorted; those in formats unknown here are left out."""
        with self._profiles() as profiles:
            return sorted({mode for _, kind, mode in profiles if kind == stream and mode is not None})

    @contextmanager
    def _profiles(self) -> Iterator[list[tuple[int, int, Mode | None]]]:
        names = {number: name for name, number in FORMATS.items()}
        call = self.lib.call
        with self.lib.held("stream_profiles_list", call("rs2_get_stream_profiles", self.handle)) as handles:
            found: list[tuple[int, int, Mode | None]] = []
            for i in range(call("rs2_get_stream_profiles_count", handles)):
                profile = call("rs2_get_stream_profile", handles, i)
                kind, form, index, uid, fps, width, height = (ctypes.c_int() for _ in range(7))
                call("rs2_get_stream_profile_data", profile, kind, form, index, uid, fps)
                mode = None
                if kind.value in (COLOR, DEPTH) and form.value in names:
                    call("rs2_get_video_stream_resolution", profile, width, height)
                    mode = Mode(width.value, height.value, fps.value, names[form.value])
                found.append((profile, kind.value, mode))
            yield found

    def open(self, mode: Mode, stream: int = COLOR) -> Intrinsics:
        """Reserve the sensor in `mode`; returns the lens data. Raises CameraError when busy or not
        offered."""
        with self._profiles() as profiles:
            for profile, kind, offered in profiles:
                if kind == stream and offered == mode:
                    intrinsics = Intrinsics()
                    self.lib.call("rs2_get_video_stream_intrinsics", profile, intrinsics)
                    self.lib.call("rs2_open", self.handle, profile)
                    self._opened = True
                    return intrinsics
        raise CameraError(
            f"sensor has no mode {mode}; choose one of: {', '.join(map(str, self.modes(stream)))}"
        )

    def supports(self, option: str) -> bool:
        """Whether it has `option`, e.g. `auto_exposure_priority`."""
        number = self.lib.options.get(option)
        return number is not None and bool(self.lib.call("rs2_supports_option", self.handle, number))

    def set_option(self, option: str, value: float) -> None:
        """Raises CameraError when the sensor lacks it or `value` is outside its range."""
        if not self.supports(option):
            offered = sorted(name for name in self.lib.options if self.supports(name))
            raise CameraError(
                f"camera option {option}: not offered; choose one of: {', '.join(offered) or 'none'}"
            )
        number = self.lib.options[option]
        low, high, step, default = (ctypes.c_float() for _ in range(4))
        self.lib.call("rs2_get_option_range", self.handle, number, low, high, step, default)
        if not low.value <= value <= high.value:
            raise CameraError(f"camera option {option} = {value}: must lie in [{low.value}, {high.value}]")
        self.lib.call("rs2_set_option", self.handle, number, value)

    def option(self, option: str) -> float:
        """The present value of `option`."""
        return float(self.lib.call("rs2_get_option", self.handle, self.lib.options[option]))

    def start(self, queue: int) -> None:
        """Deliver frames into the rs2_frame_queue `queue`."""
        self.lib.call("rs2_start_queue", self.handle, queue)
        self._started = True

    def stop(self) -> None:
        """No frame is delivered after it returns. Harmless on a sensor that was not started."""
        if self._started:
            self._started = False
            self.lib.call("rs2_stop", self.handle)

    def close(self) -> None:
        """Stop, release the mode and the handle. Harmless when repeated."""
        try:
            self.stop()
            if self._opened:
                self._opened = False
                self.lib.call("rs2_close", self.handle)
        finally:
            self._release()


class Device:
    """One camera. `close` gives its handle and those of its sensors back."""

    def __init__(self, lib: Library, handle: int) -> None:
        self.lib, self.handle = lib, handle
        self._release = lib.lease(self, "device", handle)

    def info(self, key: str) -> str:
        """name, serial, firmware, port, usb or product_line; "" where the camera does not tell."""
        if not self.lib.call("rs2_supports_device_info", self.handle, INFO[key]):
            return ""
        return str(self.lib.call("rs2_get_device_info", self.handle, INFO[key]).decode())

    def sensors(self) -> list[Sensor]:
        """Its sensors; the caller closes them."""
        with self.lib.held("sensor_list", self.lib.call("rs2_query_sensors", self.handle)) as handles:
            count = self.lib.call("rs2_get_sensors_count", handles)
            return [Sensor(self.lib, self.lib.call("rs2_create_sensor", handles, i)) for i in range(count)]

    def hardware_reset(self) -> None:
        """Make the camera leave the bus and come back; this object is of no use afterwards."""
        self.lib.call("rs2_hardware_reset", self.handle)

    def close(self) -> None:
        """Harmless when repeated."""
        self._release()
