"""A setting of a run: its default, and what a command line says of it."""

import dataclasses
from typing import Any, NamedTuple


class About(NamedTuple):
    """What a command line says of a setting.

    Attributes:
      group: the heading it stands under.
      help: a short line; what a default of None stands for is in it.
      kind: "path" for text that names a file or folder; None for what the type says.
    """

    group: str
    help: str
    kind: str | None = None


def setting(group: str, default: Any, help: str, kind: str | None = None) -> Any:
    """A field of a dataclass that is a setting."""
    return dataclasses.field(default=default, metadata={"about": About(group, help, kind)})
