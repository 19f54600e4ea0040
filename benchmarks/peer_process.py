"""The process on the other side of a comparison, which answers a line to each line."""

import contextlib
import json
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any, Self


class Peer:
    """A process whose first line of JSON says its `version`, `parameters` and `alternatives`.

    After that it takes "alternative|steps" a line, and answers when so many steps are done.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment)
        )
        self._first: dict[str, Any] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Asks no more, and waits a while for it to end."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @property
    def what(self) -> dict[str, Any]:
        """Its first line, which is waited for."""
        if self._first is None:
            self._first = json.loads(self._answer())
        return self._first

    def run(self, alternative: str, steps: int) -> None:
        """Returns when so many steps are done."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{alternative}|{steps}\n")
        self._process.stdin.flush()
        self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        answer = self._process.stdout.readline().rstrip("\n")
        if not answer:
            raise RuntimeError("the PyTorch side has ended: its error stands above")
        return answer
