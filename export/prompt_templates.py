"""Prompts: the sentence that each embodiment's instructions were wrapped in. It tells the model how its picture is
laid out, so it belongs to `mosaic`; a checkpoint is only as good as the sentence it was trained with.

Source: the wording is the published training data's (facts/dreamzero 1.3, commit ab790c1, Apache-2.0), kept to the
letter because tokens are counted on it. Texts are cleaned as published but for one step, the repair of wrongly
decoded characters, which leaves well-formed text as it is.
"""

import html
import re

from dzedge.errors import UsageError

FOUR = (
    "A multi-view video shows that a robot {task} The video is split into four views: The top-left view shows the "
    "{first}, the top-right view shows the {right}, the bottom-left view shows the {left}, and the bottom-right view "
    "is a black screen{end}. The robot {task}"
)
HANDS = {
    "first": "camera view from the robot's head", "right": "camera view from the right hand",
    "left": "camera view from the left hand", "end": " (inactive view)",
}  # fmt: skip
CAMERAS = {"first": "top camera", "right": "right camera", "left": "left camera", "end": ""}
DROID = (
    "A multi-view video shows that a robot {task} The video is split into three views: The top view shows the camera "
    "view from the robot's wrist, the bottom-left view shows the camera view from the left exterior camera, and the "
    "bottom-right view shows the camera view from the right exterior camera. During training, one of the two bottom "
    "exterior views may be a black screen (dropped view). The robot {task}"
)
HUMAN = "A single view video shows that a human {task}"
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    "oxe_droid": (DROID, {}), "agibot": (FOUR, HANDS), "xdof": (FOUR, HANDS), "yam": (FOUR, CAMERAS),
    "gr1_unified": (HUMAN, {}), "mecka_hands": (HUMAN, {}),
}  # fmt: skip
"""By embodiment tag."""


def prompt(tag: str, instruction: str) -> str:
    """What the text encoder is given for an instruction. Raises UsageError for a tag without a published sentence,
    or an empty instruction."""
    if tag not in TEMPLATES:
        raise UsageError(f"prompt: embodiment {tag!r} has no published sentence; known: {', '.join(sorted(TEMPLATES))}")
    if not instruction.strip():
        raise UsageError("prompt: the instruction is empty; say what is to be done")
    template, words = TEMPLATES[tag]
    return cleaned(template.format(task=instruction.lower(), **words))


def cleaned(text: str) -> str:
    """Entities decoded (twice, as published), white space collapsed."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(text))).strip()
