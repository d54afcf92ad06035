"""`dzedge arm calibrate` as a conversation: middle, range, write; check and restore of a file."""

import select
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live

from dzedge import console
from dzedge.arm_session import Site
from dzedge.arm_view import range_table
from dzedge.clock import NS
from dzedge.errors import DeviceError, UsageError
from dzedge.hardware.calibrator import Calibrator, RangeRecorder, hardly_moved
from dzedge.hardware.lerobot import MIDDLE, read_lerobot, write_lerobot
from dzedge.prompt import ask, asks, confirm

STEPS = ("middle", "range", "write")
FULL_TURN = ("wrist_roll",)
"""LeRobot's choice for SO arms."""
LOOK_NS = NS // 20
SUPPORT = "Torque goes off and the arm drops. Is it supported?"


class Calibration:
    """The calibration of one site's arm. as_json: nobody is asked, nothing is said; the documents tell all."""

    def __init__(self, site: Site, yes: bool, as_json: bool) -> None:
        site.need_servos("calibrate")
        self.site, self.yes, self.as_json = site, yes, as_json
        self.terminal = Console(stderr=True, markup=False)

    # ---- a file that is there

    def check(self) -> dict[str, Any]:
        """Compare the file with the servos."""
        path = self.site.calibration_file()
        with self.site.servos() as servos:
            found = servos.mismatches(read_lerobot(path))
        self._say(f"{path}: " + ("the servos hold it" if not found else "the servos hold another calibration"))
        for words in found:
            self._say(f"  {words}")
        if found:
            self._say("--restore writes the file into the servos if it is of this arm; else calibrate again")
        return {"file": str(path), "ok": not found, "mismatches": found}

    def restore(self) -> dict[str, Any]:
        """Write the file into the servos, where they differ, and compare again."""
        path = self.site.calibration_file()
        entries = read_lerobot(path)
        with self.site.servos() as servos:
            known = {name: entry.id for name, entry in entries.items()}
            missing = [name for name, servo in servos.servos.items() if known.get(name) != servo.id]
            if missing:
                raise UsageError(f"{path} is of another arm: it lacks {', '.join(missing)}, or gives them other ids")
            self._torque_off(servos)
            written = servos.write(entries)
            found = servos.mismatches(entries)
        self._say(f"{path}: " + ("; ".join(f"{n}: {', '.join(w)}" for n, w in written.items()) or "was so already"))
        return {"file": str(path), "ok": not found, "written": written, "mismatches": found}

    # ---- a new one

    def run(
        self, step: str, seconds: float | None, full_turn: list[str] | None, out: Path | None, restart: bool
    ) -> dict[str, Any]:
        """The steps that are left, or one of them; not ok, with nothing written, where joints were hardly moved. Raises
        UsageError, DeviceError, SafetyError."""
        if step not in (*STEPS, "all"):
            raise UsageError(f"--step {step}: must be all, {', '.join(STEPS)}")
        endless = self._endless(full_turn)
        if step in ("all", "range") and seconds is None and not asks(self.as_json):
            raise UsageError("without a terminal name --seconds, how long ranges are recorded")
        progress, idle = self.site.progress, ""
        if restart or step == "middle":
            progress.offsets, progress.spans = {}, {}
        with self.site.servos() as servos:
            self._torque_off(servos)
            if step == "middle" or (step == "all" and not progress.offsets):
                self._middle(servos)
            elif step == "all":
                self._say("goes on with the middle of before; --restart begins anew")
            if set(progress.offsets) != set(servos.servos):
                raise UsageError("the middle is not set: --step middle first")
            foreign = [name for name, servo in servos.servos.items() if servo.get("offset") != progress.offsets[name]]
            if foreign:  # ranges would be of another middle than the one that is written
                raise UsageError(f"{', '.join(foreign)}: not the middle of before: calibrated anew since? --restart")
            if step in ("all", "range"):
                self._range(servos, seconds, endless)
                idle = hardly_moved([name for name in servos.servos if name not in endless], progress.spans)
                if idle:
                    self._complain(f"{idle}; what was noted is kept: go on with --step range")
            document = {"ok": not idle, "offsets": progress.offsets, "spans": _ends(progress.spans)}
            document |= {"message": idle} if idle else {}
            if step in ("all", "write") and not idle:
                document |= self._write(servos, endless, out or self.site.calibration_target())
        return document

    def _endless(self, full_turn: list[str] | None) -> tuple[str, ...]:
        names = [joint.name for joint in self.site.config.arm.joints if joint.id >= 0]
        for name in full_turn or ():
            if name not in names:
                raise UsageError(f"--full-turn {name}: must be of {', '.join(names)}")
        return tuple(name for name in full_turn or FULL_TURN if name in names)

    def _torque_off(self, servos: Calibrator) -> None:
        """Asked for only where an arm would fall."""
        if any(servo.get("torque_enable") for servo in servos.everything):
            confirm(SUPPORT, self.yes, self.as_json)
            servos.torque_off()

    def _middle(self, servos: Calibrator) -> None:
        if asks(self.as_json) and not self.yes:
            ask("Move every joint to the middle of its way and hold the arm there; Enter")
        self.site.progress.offsets = servos.centre()
        self.site.progress.spans = {}
        self.site.progress.save()
        self._say(f"every joint is at {MIDDLE} ticks now")

    def _range(self, servos: Calibrator, seconds: float | None, endless: tuple[str, ...]) -> None:
        """Until Enter, or for `seconds`. What is noted is kept, also where an adapter is unplugged meanwhile."""
        clock, progress = self.site.clock, self.site.progress
        recorder = RangeRecorder(progress.spans)
        joints = [name for name in servos.servos if name not in endless]
        keyboard = asks(self.as_json)
        self._say(f"Move {', '.join(joints)} one by one from end to end" + ("; Enter ends it" if keyboard else ""))
        end_ns = None if seconds is None else clock.now_ns() + int(seconds * NS)
        try:
            with Live(console=self.terminal, auto_refresh=False, transient=True) as live:
                while end_ns is None or clock.now_ns() < end_ns:
                    now = servos.positions(joints)
                    recorder.update(now)
                    if self.terminal.is_terminal and not self.as_json:
                        live.update(range_table(now, recorder.spans), refresh=True)
                    if keyboard and select.select([sys.stdin], [], [], 0)[0]:
                        sys.stdin.readline()
                        break
                    clock.sleep_until_ns(clock.now_ns() + LOOK_NS)
        except DeviceError:
            self._keep(recorder)
            raise
        self._keep(recorder)
        for name, span in recorder.spans.items():
            self._say(f"{name}: {span.low} to {span.high} ticks")

    def _keep(self, recorder: RangeRecorder) -> None:
        self.site.progress.spans = recorder.spans
        self.site.progress.save()

    def _write(self, servos: Calibrator, endless: tuple[str, ...], path: Path) -> dict[str, Any]:
        """Into the servos and the file; then the progress is forgotten, for it is done."""
        progress = self.site.progress
        entries = servos.entries(progress.offsets, progress.spans, endless)
        servos.write(entries)
        write_lerobot(path, entries)
        found = servos.mismatches(read_lerobot(path))
        progress.offsets, progress.spans = {}, {}
        progress.save()
        self._say(f"wrote {path}")
        if self.site.config.arm.calibration is None:
            self._say(f'name it in the robot file, under [arm]: calibration = "{path}"')
        return {"file": str(path), "ok": not found, "mismatches": found}

    def _complain(self, words: str) -> None:
        if not self.as_json:
            self.terminal.print(words, style="red", soft_wrap=True)

    def _say(self, words: str) -> None:
        if not self.as_json:
            console.tell(words)


def _ends(spans: dict[str, Any]) -> dict[str, list[int]]:
    return {name: [span.low, span.high] for name, span in spans.items()}
