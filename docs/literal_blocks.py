"""For mkdocstrings: literal blocks of docstrings, after two colons, as Markdown has them."""

from typing import Any

import griffe


class LiteralBlocks(griffe.Extension):
    """Puts fences around them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        del kwargs
        if obj.docstring:
            obj.docstring.value = fenced(obj.docstring.value)


def fenced(text: str) -> str:
    """The text, with a fence around each block that is indented further than the line before it, which ends with ::."""
    lines, out = text.splitlines(), list[str]()
    while lines:
        line = lines.pop(0)
        if not line.endswith("::"):
            out.append(line)
            continue
        depth, block = _indent(line), list[str]()
        while lines and (not lines[0].strip() or _indent(lines[0]) > depth):
            block.append(lines.pop(0))
        while block and not block[-1].strip():
            block.pop()
        inside = [each for i, each in enumerate(block) if each.strip() or i]
        margin = " " * depth
        out += [line[:-1], "", f"{margin}```text", *(each[2:] for each in inside), f"{margin}```", ""]
    return "\n".join(out)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
