"""docs/hardware.md against the code: every message has a row, every row a message, every command exists."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from dzedge import cli
from dzedge.arm_config import MODELS

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "hardware.md"
ERRORS = {
    "DzedgeError", "UsageError", "ConfigError", "DeviceError", "PortError", "BusError", "CameraError", "SafetyError",
}  # fmt: skip
PROGRAMMING = {"ValueError", "TypeError", "RuntimeError", "IndexError", "NotImplementedError", "OSError"}
"""Raised for mistakes of a program; no user sees them."""
COMMANDS = ("arm_*.py", "camera_*.py", "viewfinder.py", "glass.py", "prompt.py", "simulator.py", "sim_commands.py")
ROBOT_FILE = {"arm_config.py", "camera_config.py"}
"""Their messages come with file, key, value and range; one row stands for all."""
SILENT = {"udev.py", "usb.py", "host.py"}
"""Hold text for files, not for people."""
TABLES = "# When something goes wrong"
HOLE = "\0"
"""Stands for what a message fills in."""
NO_MESSAGE = ("SELECT ", "a read of its status")
SHARE = 4
"""A row must show at least one part in so many of a message."""
WORDS = 4
"""A string of so many words is a sentence, hence a message or part of one."""


def template(node: ast.expr) -> str:
    """A string with a HOLE for each thing that is filled in."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(template(part) if isinstance(part, ast.Constant) else HOLE for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return HOLE


def called(node: ast.AST) -> str:
    return getattr(node.func, "id", getattr(node.func, "attr", "")) if isinstance(node, ast.Call) else ""


def strings(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, template) of the strings of a file, but for docstrings, options and what only programmers see."""
    if isinstance(node, ast.Assert) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
        return
    if called(node) in PROGRAMMING | {"Option", "Argument", "Typer"}:
        return
    if isinstance(node, ast.expr):
        text = template(node)
        if text.replace(HOLE, ""):
            yield node.lineno, text
            if isinstance(node, ast.BinOp):
                return
    for child in ast.iter_child_nodes(node):
        if not (isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)):
            yield from strings(child)


def sentence(text: str) -> bool:
    return len([word for word in text.replace(HOLE, " ").split() if word.strip(".,:;()?").isalpha()]) >= WORDS


def spoken() -> Iterator[tuple[str, str, bool]]:
    """(place, template, must have a row) of every string wherever devices are handled. Rows must have the arguments of
    our errors, and every sentence of the drivers."""
    drivers = sorted((ROOT / "hardware").glob("*.py"))
    commands = {path for pattern in COMMANDS for path in (ROOT / "dzedge").glob(pattern)}
    for path in [*drivers, *sorted((ROOT / "hardware" / "sim").glob("*.py")), *sorted(commands)]:
        if path.name in ROBOT_FILE | SILENT:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        arguments = {node.args[0] for node in ast.walk(tree) if called(node) in ERRORS and node.args}
        raised = {template(argument) for argument in arguments if re.search("[a-z]{3}", template(argument))}
        for line, text in strings(tree):
            needed = text in raised or (path in drivers and sentence(text) and not text.startswith(NO_MESSAGE))
            yield f"{path.name}:{line}", text, needed


@cache
def rows() -> tuple[str, ...]:
    """The messages of the page's tables, with … for what is filled in."""
    text = PAGE.read_text(encoding="utf-8")
    cells = re.findall(r"^\| (`.+?`) \| .*\|$", text[text.index(TABLES) :], re.MULTILINE)
    return tuple(double or single for cell in cells for double, single in re.findall(r"`` ?(.+?) ?``|`(.+?)`", cell))


@cache
def pattern(row: str) -> re.Pattern[str]:
    return re.compile(".*?".join(map(re.escape, row.split("…"))))


def shows(row: str, text: str) -> bool:
    """Whether a row is (part of) a message."""
    return pattern(row).search(text) is not None


def covered(text: str) -> bool:
    """Whether some row shows a message, and a good part of it: `camera …: …` shows too many."""
    length = len(text.replace(HOLE, ""))
    return any(shows(row, text) and len(row.replace("…", "")) * SHARE >= length for row in rows())


def test_every_message_has_a_cure():
    needed = [(place, text) for place, text, needed in spoken() if needed]
    assert len(needed) > 150
    lacking = [f"{place}: {text}".replace(HOLE, "…") for place, text in needed if not covered(text)]
    assert not lacking, "docs/hardware.md has no row for:\n" + "\n".join(lacking)


def test_every_row_is_a_message():
    texts = [text for _, text, _ in spoken()]
    stale = [row for row in rows() if not any(shows(row, text) for text in texts)]
    assert not stale, "docs/hardware.md speaks of messages that no code gives:\n" + "\n".join(stale)


def test_rows_are_long_enough_to_mean_one_thing():
    assert not [row for row in rows() if len(row.replace("…", "").strip()) < 8]
    assert len(rows()) == len(set(rows())) > 50


@pytest.mark.parametrize(
    ("row", "text", "wanted"),
    [("no … here", f"there is no {HOLE} here; look", True), ("no … here", "no here", False), ("a.b", "axb", False),
     ("first … second", f"second {HOLE} first", False)],
)  # fmt: skip
def test_how_rows_are_compared(row, text, wanted):
    assert shows(row, text) is wanted


def test_a_general_row_does_not_hide_a_new_message():
    assert "camera …: …" in rows() and covered(f"camera {HOLE}: {HOLE}")
    assert shows("camera …: …", f"camera {HOLE}: fell off the table; screw it on")
    assert not covered(f"camera {HOLE}: fell off the table; screw it on")


def test_a_new_message_would_be_noticed():
    tree = ast.parse('def f():\n    "a docstring of many words"\n    raise BusError(f"servo {x} fell off its horn")')
    assert [text for _, text in strings(tree) if sentence(text)] == [f"servo {HOLE} fell off its horn"]
    assert not any(shows(row, f"servo {HOLE} fell off its horn") for row in rows())


def commands(pattern: str) -> list[str]:
    return sorted(set(re.findall(pattern, PAGE.read_text(encoding="utf-8"), re.MULTILINE)))


IN_BLOCKS = commands(r"^ {4,}(dzedge [^>\n]+)")
IN_SENTENCES = commands(r"`(dzedge [^`]+)`")


def find(line: str) -> tuple[typer.core.TyperCommand, list[str]]:
    """The command that a line calls, and its arguments."""
    words = shlex.split(line, comments=True)[1:]
    command = typer.main.get_command(cli.app)
    while hasattr(command, "commands") and words:
        assert words[0] in command.commands, f"{line}: no such command"
        command = command.commands[words.pop(0)]
    return command, words


@pytest.mark.parametrize("line", IN_BLOCKS)
def test_every_command_can_be_typed(line):
    command, words = find(line)
    command.make_context("dzedge", words)


@pytest.mark.parametrize("line", IN_SENTENCES)
def test_every_command_spoken_of_exists(line):
    command, words = find(line)
    known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert {word for word in words if word.startswith("--")} <= known


def test_a_command_that_does_not_exist_is_noticed():
    for line in ("dzedge dance", "dzedge arm dance"):
        with pytest.raises(AssertionError, match="no such command"):
            find(line)
    for line in ("dzedge arm scan --no-such-option", "dzedge camera record"):
        with pytest.raises(Exception, match=r"(?i)no such option|missing"):
            test_every_command_can_be_typed(line)
    assert len(IN_BLOCKS) > 15 and len(IN_SENTENCES) > 5


@pytest.mark.parametrize("model", [name for names in MODELS.values() for name in names])
def test_every_servo_model_is_listed(model):
    assert re.search(rf"\b{model}\b", PAGE.read_text(encoding="utf-8"), re.IGNORECASE)


def test_links_and_robot_files_are_there():
    text = PAGE.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        assert target.startswith("https://") or (PAGE.parent / target).exists(), target
    for name in re.findall(r"robots/\w+\.toml", text):
        assert (ROOT / name).is_file(), name
