"""Asking a person, where there is one."""

import sys

from rich.console import Console
from rich.prompt import Confirm, Prompt

from dzedge.errors import SafetyError


def on_terminal() -> bool:
    """Whether stdout is looked at by a person."""
    return sys.stdout.isatty()


def asks(as_json: bool) -> bool:
    """Whether there is somebody to ask."""
    return not as_json and sys.stdin.isatty()


def ask(words: str) -> str:
    """What a person types, on stderr asked; "" for Enter alone."""
    return Prompt.ask(words, console=Console(stderr=True), default="", show_default=False)


def confirm(question: str, yes: bool, as_json: bool) -> None:
    """Ask, unless `yes`. SafetyError for a no, or where nobody can be asked."""
    if yes:
        return
    if not asks(as_json):
        raise SafetyError(f"{question} Nobody can be asked here: say so with --yes; nothing was done")
    if not Confirm.ask(question, console=Console(stderr=True), default=False):
        raise SafetyError("refused; nothing was done")
