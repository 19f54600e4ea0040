"""All experiments on the paper's theory, one after the other, and their report.

Each runs in a process of its own and leaves its files in a folder of --workdir; beside that folder, theory.md has their
claims and figures. The exit code is 1 if a claim that should hold does not, or an experiment did not finish.
"""

import ast
import contextlib
import datetime
import json
import pathlib
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from absl import flags

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # which PYTHONSAFEPATH leaves out

from claims import Claim, table

from lsgd_jax.cluster.stopping import StopRequest
from lsgd_jax.commands.command_line import Flag, define, described, parse, refuse, stoppable, usage_of
from lsgd_jax.errors import ExitCode

EXPERIMENTS = {
    "matrix_completion": True,
    "symmetric_landscape": True,
    "stationary_points": True,
    "convergence": True,
    "step_direction": True,
    "communication_efficiency": False,
}
"""Each by the name of its script, and whether it draws random numbers, from a --seed."""
SCRIPTS = pathlib.Path(__file__).parent

TABLE = (
    Flag("workdir", "path", "results/theory", "folder for those of experiments; the report is this name with .md"),
    Flag("seed", "integer", 0, "of every experiment"),
)
FLAGS = flags.FlagValues()  # its own: those of other scripts have the same names
define(FLAGS, TABLE)


class Finished(NamedTuple):
    """An experiment that ran.

    Attributes:
      name: of its script.
      about: what its script says of itself, the first line a title.
      command: what was run.
      code: its exit code.
      seconds: CPU time that it took.
      claims: what it concluded, none if it did not get that far.
    """

    name: str
    about: str
    command: list[str]
    code: int
    seconds: float
    claims: list[Claim]

    @property
    def failed(self) -> list[str]:
        """What is wrong with it, in a line each."""
        failures = [claim.text for claim in self.claims if claim.expected and not claim.held]
        if self.code not in (0, 1) or not self.claims:
            failures.append(f"did not finish: exit code {self.code}")
        return failures


@stoppable
def main(argv: list[str], stop: StopRequest) -> int:
    """Runs the command line and returns its exit code."""
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    seed: Any = FLAGS.seed
    if seed < 0:
        return refuse(argv, f"--seed={seed}: must be at least 0")
    from lsgd_jax.cluster.processes import devices
    from lsgd_jax.files.files import write_whole
    from lsgd_jax.files.writable import make_writable
    from lsgd_jax.trainer.provenance import provenance

    workdir = pathlib.Path(str(FLAGS.workdir))
    devices()  # without any each experiment would fail, after the results of the last time had been removed
    make_writable(workdir)
    computed_with = provenance()  # before the code can change
    stop.awaited = True
    finished = []
    for name in EXPERIMENTS:
        finished.append(run(name, workdir, seed, stop))
        if stop:
            print("theory.py: stopped", file=sys.stderr)
            return ExitCode.INTERRUPTED
    report = workdir.with_name(f"{workdir.name}.md")
    try:
        write_whole(report, write(finished, workdir, seed, computed_with))
    except OSError as error:
        return refuse(argv, f"cannot write {report} ({error.strerror}): choose another --workdir")
    print(f"\n{verdict(finished)}\nreport in {report}")
    return int(any(experiment.failed for experiment in finished))


def usage() -> str:
    """The text of --help."""
    return usage_of("theory.py", described(__doc__), TABLE)


def run(name: str, workdir: pathlib.Path, seed: int, stop: StopRequest) -> Finished:
    """Runs an experiment in a process of its own, which is ended if this one is asked to stop."""
    script, folder = SCRIPTS / f"{name}.py", workdir / name
    for old in (*folder.glob("claims.json"), *folder.glob("*.png"), *folder.glob("*.csv")):
        old.unlink()  # or an experiment that stops early would seem to have made them
    arguments = [f"--workdir={folder}", *([f"--seed={seed}"] if EXPERIMENTS[name] else [])]
    print(f"\n{name}", flush=True)
    start = cpu_seconds_of_children()
    with subprocess.Popen([sys.executable, str(script), *arguments]) as process:
        while process.poll() is None and not stop:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.2)
        if stop:
            process.terminate()
    code = process.returncode
    seconds = cpu_seconds_of_children() - start
    about = ast.get_docstring(ast.parse(script.read_bytes())) if script.is_file() else None
    command = ["python", f"experiments/{name}.py", *arguments]
    return Finished(name, about or name, command, code, seconds, claims_in(folder / "claims.json"))


def claims_in(path: pathlib.Path) -> list[Claim]:
    """What an experiment concluded, none if it did not get so far, or not to the end of writing it."""
    try:
        return [Claim(**claim) for claim in json.loads(path.read_bytes())]
    except (FileNotFoundError, ValueError):
        return []


def cpu_seconds_of_children() -> float:
    """CPU time of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def verdict(finished: Sequence[Finished]) -> str:
    """Whether all held, in a line; or what did not."""
    failed = [f"{experiment.name}: {reason}" for experiment in finished for reason in experiment.failed]
    held = sum(claim.held and claim.expected for experiment in finished for claim in experiment.claims)
    ends = sum(not claim.expected for experiment in finished for claim in experiment.claims)
    if failed:
        return "**Not everything held.** " + "; ".join(failed)
    return f"All {held} claims that should hold do; {ends} more show where claims end."


def write(finished: Sequence[Finished], workdir: pathlib.Path, seed: int, computed_with: dict[str, Any]) -> str:
    """The report in Markdown, to stand beside `workdir`."""
    facts = [
        f"`python experiments/theory.py --workdir={workdir} --seed={seed}`",
        f"{platform.machine()} CPU, {sum(experiment.seconds for experiment in finished):.0f} s of CPU time",
        *(f"{name} {version}" for name, version in computed_with.items() if version),
        datetime.date.today().isoformat(),
    ]
    sections = [
        "# The paper's theory, measured",
        f"{'; '.join(facts)}.",
        verdict(finished),
        "*No, as expected*: a stronger claim than the paper's, or one outside its conditions, to show where it ends.",
    ]
    for experiment in finished:
        title, _, about = experiment.about.partition("\n")
        sections += [
            f"## {title}",
            about.strip(),
            f"`{shlex.join(experiment.command)}`, {experiment.seconds:.0f} s of CPU time",
            table(experiment.claims) if experiment.claims else f"**{'; '.join(experiment.failed)}**",
        ]
        folder = workdir / experiment.name
        for path in sorted(folder.glob("*.png")):
            sections.append(f"![{path.stem.replace('_', ' ')}]({path.relative_to(workdir.parent).as_posix()})")
        data = [
            f"[{path.name}]({path.relative_to(workdir.parent).as_posix()})" for path in sorted(folder.glob("*.csv"))
        ]
        sections.append(f"Numbers: {', '.join(data)}." if data else "")
    return "\n\n".join(filter(None, sections)) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv))
