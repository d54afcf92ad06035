"""Sizes of the model, in one frozen record that travels in checkpoints and in the manifest."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from dzedge.errors import UsageError

TOKEN_NAMES = ("arm", "red", "green", "blue", "yellow", "magenta", "cyan")
"""Structured tokens: token 0 is the arm, the others are cubes by colour."""

ARM_CHANNELS = 10
"""Tip, wrist and elbow positions [m] and the gripper's opening."""

CUBE_CHANNELS = 4
"""Position [m] and presence 0..1; the remaining channels of a cube's token are zero."""

TOKENIZERS = ("structured", "vae")


@dataclass(frozen=True, slots=True)
class Sizes:
    """Everything that decides a tensor's shape.

    frames F, tokens K, channels C, horizon H, joints J, window S, layers L, heads A, width d, words W;
    patch: actions in one action token; given: whether the video stream can be told actions to follow;
    encoder_width: channels of the tokenizer's first convolution.

    tokenizer: "structured", one token a thing, or "vae", one token a square patch of the image; cell: side of such a
    patch [pixels]; vocabulary: rows of the words' table, padding included ("structured" has its own).

    Raises UsageError where patches do not tile the image, or are not as many as `tokens`.
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
    tokenizer: str = "structured"
    cell: int = 12
    vocabulary: int = 32

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise UsageError(f"sizes.tokenizer {self.tokenizer!r}: must be one of {', '.join(TOKENIZERS)}; change it")
        if self.structured:
            return
        if self.cell < 4 or self.cell % 4 or self.image_height % self.cell or self.image_width % self.cell:
            raise UsageError(
                f"sizes.cell {self.cell}: must be a multiple of 4 that divides image_height {self.image_height} and "
                f"image_width {self.image_width}; change one of the three"
            )
        rows, columns = self.grid
        if self.tokens != rows * columns:
            raise UsageError(
                f"sizes.tokens {self.tokens}: an image of {self.image_height} x {self.image_width} has "
                f"{rows} x {columns} patches of side {self.cell}; set tokens = {rows * columns}"
            )

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    @property
    def structured(self) -> bool:
        """Whether a token is a thing: the arm first, then cubes by colour."""
        return self.tokenizer == "structured"

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image_height // self.cell, self.image_width // self.cell

    @property
    def pointers(self) -> int:
        """Entries of a text embedding that point at a token: one a cube; patches cannot be named."""
        return self.tokens - 1 if self.structured else 0

    @property
    def kinds(self) -> int:
        """Names that tokens have: arm and cube, or one a patch."""
        return 2 if self.structured else self.tokens

    @property
    def token_names(self) -> tuple[str, ...]:
        if self.structured:
            return TOKEN_NAMES
        rows, columns = self.grid
        return tuple(f"patch {row},{column}" for row in range(rows) for column in range(columns))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Sizes":
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})
