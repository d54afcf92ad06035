"""Where cameras come from: the driver that a robot file names, and everything that is attached to this machine."""

from dataclasses import dataclass

from dzedge.camera_config import SIM, SIM_CAMERA
from dzedge.camera_config import Camera as Table
from dzedge.errors import CameraError
from dzedge.hardware.camera import Camera, CameraInfo
from dzedge.hardware.librealsense import Mode
from dzedge.hardware.playback import Playback
from dzedge.hardware.realsense import RealSense
from dzedge.hardware.realsense_devices import DeviceProvider, LiveDevices
from dzedge.hardware.sim.software_camera import SoftwareCamera
from dzedge.hardware.v4l2 import V4l2
from dzedge.hardware.video_nodes import VideoNodes
from dzedge.kernels.mailbox import FrameRing

SIM_RATE = 15
"""[Hz], of the simulated camera where nothing says otherwise."""


@dataclass(frozen=True, slots=True)
class Source:
    """One camera that is attached. driver: by which it is read; modes: of its colour pictures; trouble: why it cannot
    be used, or what is wrong with it, and what to do; "" when all is well."""

    driver: str
    info: CameraInfo
    modes: tuple[Mode, ...]
    trouble: str = ""


class Sources:
    """Makes cameras of all drivers. The one librealsense context that they share is made when first needed.

    nodes: who finds webcams; live: who finds RealSense cameras, None: librealsense.
    """

    def __init__(self, nodes: VideoNodes | None = None, live: DeviceProvider | None = None) -> None:
        self._nodes, self._live = nodes or VideoNodes(), live

    @property
    def live(self) -> DeviceProvider:
        """The RealSense cameras on this machine. Raises CameraError when librealsense is missing."""
        self._live = live = self._live or LiveDevices()
        return live

    def provider(self, table: Table, rendered: FrameRing | None) -> DeviceProvider:
        """Where the RealSense driver gets the device of `table` from. rendered: the frames of a simulated one."""
        if not table.simulated:
            return self.live
        assert rendered is not None, "a simulated camera needs the frames that the simulator renders"
        return SoftwareCamera(rendered, fps=table.fps, serial=table.serial)

    def camera(self, table: Table, rendered: FrameRing | None = None) -> Camera:
        """The camera of a table of the robot file, not yet open. rendered: where the simulator puts the frames of a
        simulated one. Raises CameraError."""
        if table.driver == "v4l2":
            return V4l2(table, table.path, nodes=self._nodes)
        if table.driver == "playback":
            assert table.path is not None
            return Playback(table.path, table)
        return RealSense(self.provider(table, rendered), table, allow_usb2=table.allow_usb2)

    def attached(self) -> list[Source]:
        """Every camera found, the simulated one last. Where librealsense is missing only its cameras are."""
        return [*self._realsenses(), *self._webcams(), simulated()]

    def _realsenses(self) -> list[Source]:
        try:
            infos = self.live.attached()
        except CameraError:
            return []
        return [self._realsense(info) for info in infos]

    def _realsense(self, info: CameraInfo) -> Source:
        modes: list[Mode] = []
        trouble = usb_trouble(info)
        try:
            device = self.live.find(info.serial)
            try:
                for sensor in device.sensors():
                    modes += sensor.modes()
                    sensor.close()
            finally:
                device.close()
        except CameraError as error:
            trouble = str(error)
        return Source("realsense", info, tuple(sorted(modes)), trouble)

    def _webcams(self) -> list[Source]:
        """Those that are no RealSense: the nodes of one that librealsense reads are left out."""
        found = []
        for node in self._nodes.attached():
            if "RealSense" in node.card:
                continue
            modes: tuple[Mode, ...] = ()
            trouble = ""
            try:
                modes = tuple(self._nodes.modes(node.path))
                trouble = "" if modes else "no format that can be made RGB (YUYV, MJPG, GREY): use another camera"
            except CameraError as error:
                trouble = str(error)
            found.append(Source("v4l2", node.info, modes, trouble))
        return found

    def troubles(self) -> list[str]:
        """Why there may be cameras that are not listed: librealsense missing, no permission for a device file."""
        words = list(self._nodes.refused())
        try:
            _ = self.live
        except CameraError as error:
            words.insert(0, str(error))
        return words

    def close(self) -> None:
        """Give librealsense's context back, after its cameras are closed; harmless when repeated."""
        live, self._live = self._live, None
        if live is not None:
            live.close()


def usb_trouble(info: CameraInfo) -> str:
    """What is wrong with a RealSense's link, "" when nothing is. It is made for USB 3."""
    if not info.stepped_down:
        return ""
    return (
        f"on a USB {info.usb} link, needed 3: fewer modes, lower rates; push the plug in all the way or turn it, take "
        "a short USB 3 cable and a blue port"
    )


def simulated() -> Source:
    """The simulated camera, which is always there."""
    info = CameraInfo("Simulated D435", SIM, "", "", "memory")
    return Source(SIM, info, (Mode(*SIM_CAMERA, SIM_RATE, "rgb8"),))
