"""Cases that `make test` leaves out, since others cover what they do one by one: `make test-all` has them."""

from collections.abc import Iterable
from typing import Any

import pytest


def thorough(*values: Any) -> Any:
    """The values of such a case, for `parametrize`."""
    return pytest.param(*values, marks=pytest.mark.thorough)


def mostly(cases: Iterable[str], *always: str) -> list[Any]:
    """All cases, of which `make test` has those that are named."""
    return [case if case in always else thorough(case) for case in cases]
