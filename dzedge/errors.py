"""The exception tree, and the exit code of each branch.

    DzedgeError                 1  the task or check failed
    ├── UsageError              2  a wrong argument on the command line
    ├── ConfigError             2  a robot file that cannot be obeyed
    ├── DeviceError             3  a device that is absent, busy, or does not answer
    │   ├── PortError              the serial port
    │   ├── BusError               a servo on it
    │   └── CameraError            a camera
    ├── SafetyError             4  refused for safety: nothing was moved
    ├── BundleError             5  a policy bundle that is damaged, foreign or not trusted
    └── PolicyError             1  a policy that cannot run what it was asked

Every message names the thing, its value, the allowed interval and what to do about it.
"""


class DzedgeError(Exception):
    """Root of all errors that dzedge raises on purpose."""

    exit_code = 1


class UsageError(DzedgeError):
    """A wrong argument on the command line."""

    exit_code = 2


class ConfigError(DzedgeError):
    """A robot file with an unknown key, a missing key, or a value outside its range."""

    exit_code = 2


class DeviceError(DzedgeError):
    """A device that is absent, busy, or does not answer."""

    exit_code = 3


class PortError(DeviceError):
    """A serial port that is missing, busy or unplugged."""


class BusError(DeviceError):
    """A servo that is missing, of the wrong model, or that refuses an instruction."""


class CameraError(DeviceError):
    """A camera that is missing, refuses a mode, or delivers nothing."""


class SafetyError(DzedgeError):
    """Refused for safety; nothing was moved."""

    exit_code = 4


class BundleError(DzedgeError):
    """A policy bundle that is damaged, foreign or not trusted."""

    exit_code = 5


class PolicyError(DzedgeError):
    """A policy that cannot do what it was asked: an instruction it cannot embed, an output it must not give."""
