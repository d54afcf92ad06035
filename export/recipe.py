"""A whole training, as a TOML file says it. Strict: an unknown key is refused."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dzedge.errors import UsageError
from dzedge.export.model.sizes import Sizes

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

UNITS = ("rad", "deg")
FAMILIES = ("wam", "flow_vla", "token_vla", "dual_vla", "wan_joint")


@dataclasses.dataclass(frozen=True, slots=True)
class TokenizerRecipe:
    """iterations and batch; rate: of AdamW; heat: weight of the heat maps' cross-entropy; decoder_every: the
    decoder learns at every n-th iteration; half: convolutions in bfloat16, where the processor has it (2.3 times as
    fast); stills: frames of unrelated scenes to learn from; save_every: iterations between checkpoints.

    Of a tokenizer of patches: stills: frames of the data, at most; rare: weight of pixels unlike the median frame;
    kl: of the code's divergence from noise; noise: added to the code. heat and decoder_every are not its.
    """

    iterations: int = 1500
    batch: int = 64
    rate: float = 2e-3
    heat: float = 0.1
    decoder_every: int = 3
    half: bool = True
    stills: int = 28000
    rare: float = 6.0
    kl: float = 1e-3
    noise: float = 0.05
    save_every: int = 250
    seed: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class PolicyRecipe:
    """One policy's training.

    family: which; labelled, play, video: rows of each kind in a batch; rate, matrix_rate: of AdamW and Muon;
    average: of the weights; history_hidden, language_hidden: shares of rows; max_prefix, prefix_share: committed
    actions, and the share of acting rows that have some; grounding, action_weight, cube_weight: of the loss.

    Times: start_share: of rows at t = 0; clean_share: of acting rows that see the true video; coupled_share: of acting
    rows with one time for both; flash_share: of acting rows whose video is nearly noise, 1 - t from Beta(7, 1), while
    the action's time is uniform (DreamZero-Flash); clean_noise: how far a finished video shown to actions is blurred.

    Data: video_share: of the arm's videos without actions; marker: whether the hand's videos are used; auxiliary:
    actions never see a finished video, the video loss only shapes features; pseudo_labels: videos become labelled
    episodes by an inverse-dynamics model. compile, half: for a GPU.

    Patches have no names: with them grounding and cube_weight have no effect.
    """

    family: str = "wam"
    iterations: int = 12000
    labelled: int = 44
    play: int = 20
    video: int = 64
    rate: float = 2e-3
    matrix_rate: float = 4e-3
    average: float = 0.998
    start_share: float = 0.35
    clean_share: float = 0.45
    coupled_share: float = 0.25
    flash_share: float = 0.1
    clean_noise: float = 0.15
    given_share: float = 0.5
    history_hidden: float = 0.35
    language_hidden: float = 0.08
    max_prefix: int = 3
    prefix_share: float = 0.4
    grounding: float = 0.3
    action_weight: float = 1.0
    cube_weight: float = 0.3
    video_share: float = 1.0
    marker: bool = False
    auxiliary: bool = False
    pseudo_labels: bool = False
    compile: bool = False
    half: bool = False
    save_every: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise UsageError(f"recipe: policy.family {self.family!r}: must be one of {', '.join(FAMILIES)}")


@dataclasses.dataclass(frozen=True, slots=True)
class DataRecipe:
    """camera: whose frames, empty for the only one; dt: seconds between actions; frame_dt: seconds between imagined
    frames, and back to the history frame, both whole numbers of the dataset's steps; units: of its joints, "rad", or
    "deg" with a gripper of 0 to 100, as LeRobot records with use_degrees."""

    camera: str = ""
    dt: float = 0.1
    frame_dt: float = 0.2
    units: str = "rad"

    def __post_init__(self) -> None:
        if self.units not in UNITS:
            raise UsageError(f"recipe: data.units {self.units!r}: must be one of {', '.join(UNITS)}")


@dataclasses.dataclass(frozen=True, slots=True)
class Recipe:
    """Sizes, tokenizer, policy, data. Raises UsageError where they do not go together."""

    sizes: Sizes
    tokenizer: TokenizerRecipe
    policy: PolicyRecipe
    data: DataRecipe = DataRecipe()

    def __post_init__(self) -> None:
        if self.policy.pseudo_labels and not self.sizes.structured:
            raise UsageError(
                "recipe: policy.pseudo_labels true: must be false with sizes.tokenizer 'vae': joints are read off the "
                "arm's token, and patches have none"
            )
        if self.policy.family == "wan_joint" and self.sizes.structured:
            raise UsageError(
                "recipe: policy.family 'wan_joint': needs sizes.tokenizer 'vae': it cuts a grid of latents into patches"
            )


KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}


def _part(kind: Callable[..., Any], table: Any, name: str) -> Any:
    if not isinstance(table, dict):
        raise UsageError(f"recipe: {name} {table!r}: must be a table [{name}]")
    try:
        part = kind(**table)
    except TypeError as error:
        raise UsageError(f"recipe: table [{name}]: {error}; remove or rename that key") from error
    for field in dataclasses.fields(part):
        value, wanted = getattr(part, field.name), type(field.default)
        if not (type(value) is wanted or (wanted is float and type(value) is int)):
            raise UsageError(f"recipe: {name}.{field.name} {value!r}: must be {KINDS[wanted.__name__]}")
    return part


RECIPES = Path(__file__).with_name("recipes")


def recipe_path(name: str) -> Path:
    """The recipe of that name among those that came with dzedge, or the file that it names."""
    packaged = RECIPES / f"{name}.toml"
    return packaged if packaged.is_file() else Path(name)


def read_recipe(path: Path) -> Recipe:
    """Raises UsageError."""
    try:
        table = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        known = ", ".join(sorted(found.stem for found in RECIPES.glob("*.toml")))
        raise UsageError(f"recipe {path}: {error}; name a TOML file, or one of {known}") from error
    unknown = set(table) - {"sizes", "tokenizer", "policy", "data"}
    if unknown:
        raise UsageError(f"recipe {path}: unknown table or key {sorted(unknown)[0]!r}; remove it")
    return Recipe(
        _part(Sizes, table.get("sizes", {}), "sizes"),
        _part(TokenizerRecipe, table.get("tokenizer", {}), "tokenizer"),
        _part(PolicyRecipe, table.get("policy", {}), "policy"),
        _part(DataRecipe, table.get("data", {}), "data"),
    )
