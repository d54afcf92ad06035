"""Sizes of the model, in one frozen record that travels in checkpoints and in the manifest."""

from dataclasses import asdict, dataclass, fields

TOKEN_NAMES = ("arm", "red", "green", "blue", "yellow", "magenta", "cyan")
"""Token 0 is the arm, the others are cubes by colour."""

ARM_CHANNELS = 10
"""Tip, wrist and elbow positions [m] and the gripper's opening."""

CUBE_CHANNELS = 4
"""Position [m] and presence 0..1; the remaining channels of a cube's token are zero."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that decides a tensor's shape.

    frames F, tokens K, channels C, horizon H, joints J, window S, layers L, heads A, width d, words W;
    patch: actions in one action token; given: whether the video stream can be told actions to follow;
    encoder_width: channels of the tokenizer's first convolution.
    """

    frames: int = 4
    tokens: int = 7
    channels: int = 10
    horizon: int = 8
    joints: int = 6
    window: int = 2
    layers: int = 4
    heads: int = 4
    width: int = 96
    words: int = 8
    patch: int = 4
    given: bool = False
    image_height: int = 72
    image_width: int = 96
    encoder_width: int = 24
    decoder_width: int = 24

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, int]) -> "Sizes":
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})
