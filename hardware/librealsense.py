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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dzedge.errors import CameraError
from dzedge.hardware.librealsense_calls import CALLS, CODES, DELETERS, PUMPED, Intrinsics

COLOR = 2
DEPTH = 1
INFRARED = 3
STREAMS = {"color": (COLOR, 0), "depth": (DEPTH, 0), "infrared": (INFRARED, 1), "infrared2": (INFRARED, 2)}
"""Kind and index of a camera's streams; its two infrared eyes are left and right."""
FORMATS = {"z16": 1, "yuyv": 4, "rgb8": 5, "bgr8": 6, "y8": 9}
INFO = {"name": 0, "serial": 1, "firmware": 2, "recommended": 3, "port": 4, "usb": 9, "product_line": 10}
OLDEST = 25500
"""Lowest API version accepted: 2.55.0, where every function below exists."""


@dataclass(frozen=True, slots=True, order=True)
class Mode:
    """One video mode of a sensor's stream. width, height: [pixels]; fps: [Hz]."""

    width: int
    height: int
    fps: int
    format: str

    def __str__(self) -> str:
        return f"{self.width}x{self.height} at {self.fps} fps {self.format}"


@dataclass(frozen=True, slots=True)
class _Offer:
    """One stream profile of a sensor, valid while the list it came from is held."""

    profile: int
    stream: int
    index: int
    mode: Mode

    def of(self, stream: int, index: int | None) -> bool:
        return self.stream == stream and index in (None, self.index)


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

    def modes(self, stream: int = COLOR, index: int | None = None) -> list[Mode]:
        """The modes in which it can deliver `stream` (of that index, any without), sorted; those in formats unknown
        here are left out."""
        with self._profiles() as profiles:
            return sorted({offer.mode for offer in profiles if offer.stream == stream and index in (None, offer.index)})

    @contextmanager
    def _profiles(self) -> Iterator[list[_Offer]]:
        names = {number: name for name, number in FORMATS.items()}
        call = self.lib.call
        with self.lib.held("stream_profiles_list", call("rs2_get_stream_profiles", self.handle)) as handles:
            found: list[_Offer] = []
            for i in range(call("rs2_get_stream_profiles_count", handles)):
                profile = call("rs2_get_stream_profile", handles, i)
                kind, form, index, uid, fps, width, height = (ctypes.c_int() for _ in range(7))
                call("rs2_get_stream_profile_data", profile, kind, form, index, uid, fps)
                if kind.value in (COLOR, DEPTH, INFRARED) and form.value in names:
                    call("rs2_get_video_stream_resolution", profile, width, height)
                    mode = Mode(width.value, height.value, fps.value, names[form.value])
                    found.append(_Offer(profile, kind.value, index.value, mode))
            yield found

    def open(self, mode: Mode, stream: int = COLOR) -> Intrinsics:
        """`open_all` for one stream of any index."""
        return self.open_all([(stream, None, mode)])[0]

    def open_all(self, wanted: Sequence[tuple[int, int | None, Mode]]) -> list[Intrinsics]:
        """Reserve the sensor for all its streams at once: (stream, index, mode), None for any index. Returns the lens
        data of each. Raises CameraError when busy or not offered."""
        with self._profiles() as profiles:
            chosen: list[int] = []
            lenses: list[Intrinsics] = []
            for stream, index, mode in wanted:
                handle = next((o.profile for o in profiles if o.mode == mode and o.of(stream, index)), None)
                if handle is None:
                    names = ", ".join(map(str, self.modes(stream, index)))
                    raise CameraError(f"sensor has no mode {mode}; choose one of: {names or 'none'}")
                lenses.append(Intrinsics())
                self.lib.call("rs2_get_video_stream_intrinsics", handle, lenses[-1])
                chosen.append(handle)
            self.lib.call("rs2_open_multiple", self.handle, (ctypes.c_void_p * len(chosen))(*chosen), len(chosen))
            self._opened = True
            return lenses

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
