"""Everything that can be made to go wrong with an emulated servo bus, as verbs.

A verb acts on one servo or on the whole line, until `ok` or for a time. What it spoils follows the seed of that servo
or line.
"""

from random import Random

SERVO_VERBS = {
    "ok": "healthy again; what has latched (alert) stays until power cycle or reboot",
    "off": "dead: no answer, no torque",
    "silent": "no answer, but it goes on driving its joint",
    "stuck": "answers but does not move",
    "stall": "blocked by something: its load rises until the servo protects itself",
    "garbage": "random bytes instead of its replies",
    "wrong": "valid replies of wrong positions",
    "slow": "answers 1.5 ms late",
    "delayed": "answers 12 ms late, in a later cycle",
    "intermittent": "a third of the replies is lost",
    "flip": "one bit of a reply is flipped",
    "drop": "one byte of a reply is lost",
    "truncate": "a reply ends early",
    "dup": "a reply comes twice",
    "foreign": "a reply with another servo's id",
    "noise": "random bytes before a reply",
    "alert": "overloaded: latches the servo's alert and takes its torque as its registers say",
    "overheat": "hotter than its limit",
    "undervolt": "supply below its limit",
    "brownout": "power lost: silent while it boots, torque off, goals and turns forgotten",
}
"""What a servo can be told, with what it does then."""

LINE_VERBS = {
    "ok": "healthy again",
    "off": "a cut line: nobody hears or answers",
    "stuck": "as off",
    "silent": "as off",
    "garbage": SERVO_VERBS["garbage"],
    "wrong": "as flip",
    "slow": "every answer 1.5 ms late",
    "delayed": "every answer 12 ms late",
    "intermittent": SERVO_VERBS["intermittent"],
    "flip": SERVO_VERBS["flip"],
    "drop": SERVO_VERBS["drop"],
    "truncate": SERVO_VERBS["truncate"],
    "dup": SERVO_VERBS["dup"],
    "foreign": SERVO_VERBS["foreign"],
    "noise": SERVO_VERBS["noise"],
    "echo": "the adapter returns what the host sends",
    "master": "a second master: replies that it asked for come in between",
    "brownout": "power lost by all servos at once",
    "unplug": "the port hangs up and its link vanishes (on a pty)",
    "replug": "the port is there again, behind the same link (on a pty)",
}
"""What the line can be told."""

PORT_VERBS = ("unplug", "replug")
"""Line verbs that need a port which can vanish."""
FAULTS = tuple(verb for verb in SERVO_VERBS if verb in LINE_VERBS and verb != "brownout")
"""Verbs that servo and line share, and that last."""

SLOW_NS = 1_500_000
DELAYED_NS = 12_000_000
LATE_NS = {"slow": SLOW_NS, "delayed": DELAYED_NS}
DEAF = ("off", "silent", "stuck")
"""Line verbs under which nothing is heard."""
RATES = {"intermittent": 1 / 3}
"""Share of the replies that a verb spoils where none is said; all otherwise."""


def spoil(verb: str, frame: bytes, random: Random) -> list[bytes]:
    """What comes instead of a reply. Returns its pieces in the order they cross the wire; verbs that spoil no bytes
    leave it as it is."""
    at = random.randrange(len(frame))
    if verb == "intermittent":
        return []
    if verb == "garbage":
        return [random.randbytes(len(frame))]
    if verb == "flip":
        return [frame[:at] + bytes([frame[at] ^ 1 << random.randrange(8)]) + frame[at + 1 :]]
    if verb == "drop":
        return [frame[:at] + frame[at + 1 :]]
    if verb == "truncate":
        return [frame[:at]] if at else []
    if verb == "dup":
        return [frame, frame]
    if verb == "noise":
        return [random.randbytes(1 + at % 5), frame]
    return [frame]


def collide(frames: list[bytes], random: Random) -> bytes:
    """What is heard when several servos drive the line at once: each bit low where anyone pulls it low, and no two of
    them start at quite the same moment, so that bits are lost at random, too. No checksum survives but by chance."""
    longest = max(frames, key=len)
    mixed = bytearray(longest)
    for frame in frames:
        for i, byte in enumerate(frame):
            mixed[i] &= byte
    for _ in range(1 + len(longest) // 4):
        mixed[random.randrange(2, len(mixed))] ^= 1 << random.randrange(8)
    return bytes(mixed)


def describe() -> str:
    """All verbs, one a line, for a help text."""
    lines = [f"  {verb:<13}{text}" for verb, text in SERVO_VERBS.items()]
    return "\n".join(["Of a servo:", *lines, "Of the line:", *(f"  {v:<13}{t}" for v, t in LINE_VERBS.items())])
