"""Reading compiled programs: where do they communicate?"""

import re

COLLECTIVE = re.compile(
    r" (all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast)(-start)?\("
)
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|async_wrapped)=%?([\w.\-]+)|called_computations=\{([^}]*)\}")


def computations(program: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the entry computation, and the instructions of each computation."""
    entry, current, found = "", "", dict[str, list[str]]()
    for line in program.splitlines():
        if not line.startswith((" ", "}")) and (start := COMPUTATION.match(line)):
            current = start[2]
            found[current] = []
            entry = current if start[1] else entry
        elif line.startswith(" ") and current:
            found[current].append(line)
    return entry, found


def collectives(program: str) -> list[str]:
    """All instructions that communicate."""
    return [line for lines in computations(program)[1].values() for line in lines if COLLECTIVE.search(line)]


def collectives_outside_conditionals(program: str) -> list[str]:
    """Those that run whatever the predicates: reached from the entry without entering a branch."""
    entry, instructions = computations(program)
    seen: set[str] = set()
    waiting, found = [entry], []
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for line in instructions[name]:
            if COLLECTIVE.search(line):
                found.append(line)
            if " conditional(" not in line:
                names = [one or several for one, several in CALLED.findall(line)]
                waiting += [called.strip().lstrip("%") for group in names for called in group.split(",")]
    return found
