"""What bad input gets from Python: one line that says what is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from lsgd_jax.errors import InputError


@contextmanager
def refusal(*culprits: str) -> Iterator[None]:
    """Expects an InputError of one line that names the culprits."""
    with pytest.raises(InputError) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in culprits if word not in message] == [], message
