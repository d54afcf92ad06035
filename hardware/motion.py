"""Slow motions of tools: from where the arm is held to a pose, within its limits, watched all the way.

The limiter is the control tick's own (`kernels.limiter`), slowed down; the following error is judged by the robot
file's bounds. Where anything is wrong the arm comes to rest and holds.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dzedge.clock import NS
from dzedge.config import RobotConfig
from dzedge.errors import DeviceError, PortError, SafetyError
from dzedge.hardware.slow_cycle import WritableArm, narrowed
from dzedge.kernels import limiter
from dzedge.types import JointState

RATE_HZ = 50
PERIOD_NS = NS // RATE_HZ
LONGEST_NS = 2 * PERIOD_NS
"""A pause of this process counts for no more: the motion goes on from where it was."""
SPEED = 0.25
"""Fraction of the robot file's velocities that a tool moves at; acceleration and jerk are slowed alike."""
LATE_PERIODS = 25
"""Cycles without an answer, in a row, after which a motion ends: half a second."""
SETTLE_PERIODS = 100
"""How long a joint may take to arrive after its command has: 2 s."""
ARRIVED = 0.05
"""[rad], gripper [1]: as near to its command as a servo under load comes."""
GRIPPED = 2.0
"""Following error that a gripper may have: it is there to be stopped by things."""


class Clock(Protocol):
    def now_ns(self) -> int: ...

    def sleep_until_ns(self, deadline_ns: int) -> None: ...


class Motion:
    """Moves `arm`, which is active and held at `pose`, Shape (J,), [rad], gripper [1].

    speed: fraction of the velocity limits, (0, 1]. position: of the command; it is the last command that the next
    motion begins from, not the measurement, or an arm under load would sag a little each time.
    """

    def __init__(
        self,
        arm: WritableArm,
        config: RobotConfig,
        pose: NDArray[np.float64],
        clock: Clock,
        speed: float = SPEED,
    ) -> None:
        if not 0.0 < speed <= 1.0:
            raise SafetyError(f"speed = {speed} must be in (0, 1], a fraction of the robot file's velocities")
        self._arm, self._clock, self._safety = arm, clock, config.safety
        self._limits = narrowed(arm, config.arm.limits())
        # a time scale of 1/speed: v, a and j fall with its first, second and third power
        self._limits[:3] *= np.array([[speed], [speed**2], [speed**3]])
        self._following = np.array(
            [GRIPPED if j.kind == "gripper" else config.safety.following_error for j in config.arm.joints]
        )
        self._state = np.zeros((3, len(arm.names)))
        self._state[0] = pose
        self._astray = self._silent = 0
        self._last_ns = clock.now_ns()

    @property
    def position(self) -> NDArray[np.float64]:
        return self._state[0].copy()

    def go(
        self, target: NDArray[np.float64], watch: Callable[[JointState], None] = lambda state: None
    ) -> JointState:
        """Move to `target`, Shape (J,), [rad], gripper [1], and wait for the joints; where they are then.

        watch: told each measurement. SafetyError: outside the limits, nothing has moved; or a joint did not follow.
        DeviceError: the arm did not answer. In both, and when interrupted, the arm has come to rest and holds.
        """
        self.check(target)
        still = np.zeros_like(target)
        left = SETTLE_PERIODS
        try:
            while True:
                code = limiter.step(self._state, target, still, self._limits, self._wait())
                state = self._cycle(watch)
                if not code & limiter.Code.MOVING:
                    left -= 1
                    if left == 0 or (state is not None and self._near(state)):
                        return state if state is not None else self._arm.read()
        except BaseException:
            self._halt()
            raise

    def check(self, target: NDArray[np.float64]) -> None:
        """SafetyError for a target, Shape (J,), that would move a joint to outside its limits."""
        low, high = self._limits[3], self._limits[4]
        outside = [
            f"{name} = {value:.3f}, allowed [{low[j]:.3f}, {high[j]:.3f}]"
            for j, (name, value) in enumerate(zip(self._arm.names, target.tolist(), strict=True))
            # where it stands, half a tick beyond its limit perhaps, a joint may stay
            if value != self._state[0, j] and not low[j] <= value <= high[j]
        ]
        if outside:
            raise SafetyError(f"outside the limits: {'; '.join(outside)}; nothing was moved")

    def _cycle(self, watch: Callable[[JointState], None]) -> JointState | None:
        """One command; None where no answer came, or where it was not sent: after a pause of this process the next one
        is further from the last than the cycle lets pass in so short a time, and the one after that is not."""
        try:
            state = self._arm.write(self._state[0])
        except PortError:
            raise
        except (DeviceError, SafetyError):
            self._silent += 1
            if self._silent > LATE_PERIODS:
                raise
            return None
        self._silent = 0
        self._judge(state)
        watch(state)
        return state

    def _judge(self, state: JointState) -> None:
        """Following error, as DESIGN 6 has it: for longer than following_ms."""
        error = np.abs(state.positions - self._state[0])
        excess = error - self._following - self._safety.following_time_s * np.abs(self._state[1])
        self._astray = self._astray + 1 if (excess > 0).any() else 0
        if self._astray * PERIOD_NS > self._safety.following_ms * 1_000_000:
            worst = int(np.argmax(excess))
            raise SafetyError(
                f"{self._arm.names[worst]} is {error[worst]:.3f} from its command: is it blocked or overloaded? The "
                "motion was ended"
            )

    def _near(self, state: JointState) -> bool:
        joints = self._following < GRIPPED
        return bool((np.abs(state.positions - self._state[0])[joints] <= ARRIVED).all())

    def _halt(self) -> None:
        """Come to rest, within the limits, whether or not servos answer or are well: goals reach those that listen."""
        for _ in range(10 * RATE_HZ):
            code = limiter.stop(self._state, self._limits, self._wait())
            try:
                self._arm.write(self._state[0])
            except PortError:
                return  # the servos hold the last goal that reached them
            except SafetyError:
                continue  # it was not sent
            except DeviceError:
                pass
            if not code & limiter.Code.MOVING:
                return

    def _wait(self) -> float:
        """Sleep to the next period; the time since the last command [s]. A missed period is not made up for."""
        self._clock.sleep_until_ns(self._last_ns + PERIOD_NS)
        now_ns = self._clock.now_ns()
        elapsed_ns = min(now_ns - self._last_ns, LONGEST_NS)
        self._last_ns = now_ns
        return elapsed_ns / NS
