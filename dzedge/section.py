"""What every table of a robot file has in common."""

from typing import Annotated

import msgspec
from msgspec import Meta

SIM = "sim"
"""As `arm.port` or a camera's `serial`: the simulated robot instead of a device."""

Name = Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$", description="a-z, 0-9, _; 1 to 32 characters")]
Text = Annotated[str, Meta(min_length=1, max_length=200)]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the robot file."""
