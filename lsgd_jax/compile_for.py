"""Compiles the train step for TPUs and GPUs that are not here: memory, time, and what is sent over which links.

Nothing runs on them. All flags are those of lsgd_jax.train; one worker for each device, a group for each slice or node.
"""

import dataclasses
import itertools
import math
import multiprocessing
import os
import pathlib
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from absl import flags

from lsgd_jax.commands.command_line import Flag, command, define, describe, described, parse, refuse
from lsgd_jax.commands.environment import set_for_compilers
from lsgd_jax.commands.settings import GROUPS, given_settings

FLAGS = flags.FLAGS
TABLE = (
    Flag("target", "string", None, "tpu:v5e:4x4, with slices tpu:v5e:4x4*4; or h100:NODESxGPUS, as h100:4x8; h200 too"),
    Flag("json", "path", None, "file for the figures (default: none)"),
    Flag(
        "optimize",
        "boolean",
        False,
        "compile as for a run, which takes 3 to 5 times as long, and estimate the time of a step",
    ),
)
# Those of a run: nothing runs here.
OTHER = ("several processes", "run")
GIB = 2**30


def usage() -> str:
    """The text of --help."""
    lines = ["usage: python experiments/compile_for.py --target=... [--flag=value ...]", "", described(__doc__), ""]
    lines += ["hardware:", *describe(TABLE), ""]
    for group in [group for group in GROUPS if group not in OTHER]:
        lines += [f"{group}:", *describe(GROUPS[group]), ""]
    return "\n".join(lines)


@command
def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    if "target" not in FLAGS:
        define(FLAGS, TABLE)
        if "algorithm" not in FLAGS:
            define(FLAGS, itertools.chain(*GROUPS.values()))
    done = parse(FLAGS, argv, usage())
    if done is not None:
        return done
    if FLAGS.target is None:
        return refuse(argv, "--target is missing: name the hardware, as --target=tpu:v5e:4x4 or --target=h100:1x8")

    set_for_compilers()
    # Only now: JAX reads the environment when it is imported.
    from lsgd_jax.accounting.targets import read_target
    from lsgd_jax.files.files import write_json

    target = read_target(FLAGS.target)

    figures = compiled_apart(target, given_settings(FLAGS), optimize=FLAGS.optimize)
    print("\n".join(report(figures)))
    if FLAGS.json is not None:
        write_json(pathlib.Path(FLAGS.json), figures)
    return 0


def compiled_apart(target: Any, given: dict[str, Any], *, optimize: bool) -> dict[str, Any]:
    """`compiled_figures`, in a process of its own: compilers end the one that they are in where they meet their bugs.

    Raises:
      InputError: as that does, or with the compiler's last words.
    """
    from lsgd_jax.errors import InputError

    context = multiprocessing.get_context("spawn")
    with (
        tempfile.NamedTemporaryFile() as words,
        ProcessPoolExecutor(1, context, initializer=_write_errors_to, initargs=(words.name,)) as pool,
    ):
        try:
            return pool.submit(compiled_figures, target, given, optimize=optimize).result()
        except BrokenProcessPool as error:
            lines = words.read().decode(errors="replace").splitlines()
            told = [line for line in lines if "Check failed" in line] or lines[-1:] or ["without a word"]
            message = f"its compiler broke down: {told[0].strip()}: try other hardware or another model"
            raise InputError(f"--target={target.text}: {message}") from error


def _write_errors_to(file: str) -> None:
    """Of this process, those of the compiler too."""
    os.dup2(os.open(file, os.O_WRONLY), sys.stderr.fileno())


def compiled_figures(target: Any, given: dict[str, Any], *, optimize: bool) -> dict[str, Any]:
    """What compiling the settings for a target tells, as JSON has it.

    Raises:
      InputError: if the settings, or the target, cannot be.
    """
    import jax

    from lsgd_jax.accounting.ahead_of_time import compile_for, memory_and_time, traffic
    from lsgd_jax.accounting.targets import devices_of
    from lsgd_jax.config.checks import check_alone, load_config
    from lsgd_jax.config.from_config import method_of
    from lsgd_jax.engine.compiler import compiler_options
    from lsgd_jax.engine.topology import Topology
    from lsgd_jax.errors import InputError
    from lsgd_jax.optimizers.distributed_optimizer import is_overlapped

    config = load_config("unused", {"workdir": "unused"} | given, resume=False)
    update: Any = jax.config.update
    update("jax_enable_compilation_cache", False)  # which cannot keep such programs
    if not optimize:
        update("jax_optimization_level", "O0")
    devices, axes = devices_of(target), config.own_axes
    groups = given.get("groups") or target.groups
    workers = given.get("workers") or max(1, len(devices) // math.prod(axes.values()) // groups)
    config = dataclasses.replace(config, groups=groups, workers=workers)
    check_alone(config)
    try:
        topology = Topology(groups, workers, devices, worker_axes=axes)
    except ValueError as error:
        raise InputError(f"--target={target.text}: {error}") from error
    problem, topology = problem_of(config, topology)
    method = method_of(config, topology)
    options = compiler_options(config.compute_dtype, topology, overlapped=is_overlapped(method))
    found = compile_for(problem, method, topology, options)
    network = target.network(topology.mesh.size // topology.mesh.shape["group"])
    return {
        "target": target.text,
        "devices": len(devices),
        "device": target.chip.name,
        "jax": jax.__version__,
        "algorithm": config.algorithm,
        "model": config.model_name,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(problem.init, jax.random.key(0))[0])),
        "slices": target.groups if target.platform == "tpu" else 1,
        "groups": groups,
        "workers": workers,
        "worker_axes": axes,
        "mesh": dict(topology.mesh.shape),
        "memory": target.chip.memory,
        **memory_and_time(found),
        "at_peak_seconds": found.flops / target.chip.peak,
        # Without optimization the estimates are those of other programs.
        "step_seconds": found.cycles / target.chip.clock if optimize and target.chip.clock and found.cycles else None,
        **traffic(found, problem, method, topology, network),
    }


def problem_of(config: Any, topology: Any) -> tuple[Any, Any]:
    """What the settings train, and the topology as their task lays it out. Its data are read, and stay on this host."""
    import jax

    from lsgd_jax.accounting.ahead_of_time import Problem
    from lsgd_jax.config.kinds import find_source, kind_of
    from lsgd_jax.engine.topology import Topology
    from lsgd_jax.tasks.task import gathering_of, laid_out

    source = find_source(config)
    task = kind_of(source).task(config, source)
    topology = laid_out(task, topology)
    stream = task.train.open(Topology(config.groups, config.workers, jax.devices("cpu")[:1]), config.seed, config.steps)
    stream.close()
    return Problem(task.init, gathering_of(task, topology)(task.loss), stream.batches, stream.shapes), topology


def report(figures: dict[str, Any]) -> list[str]:
    """The lines for people."""
    lanes = figures["groups"] * figures["workers"] // (figures["mesh"]["group"] * figures["mesh"]["worker"])
    split = "".join(f", each over {size} ({name})" for name, size in figures["worker_axes"].items())
    shared = f", {lanes} on each" if lanes > 1 else ""
    lines = [
        f"{figures['algorithm']}, {figures['model']}, {figures['parameters']:,} parameters: {figures['groups']} × "
        f"{figures['workers']} workers{split} on {figures['devices']} × {figures['device']}{shared}",
        f"compiled       {figures['compile_seconds']:.0f} s, {figures['compile_cpu_seconds']:.0f} s of CPU; "
        f"jax {figures['jax']}, {figures['program_bytes'] / 1e6:.1f} MB of text",
        f"memory         {figures['peak'] / GIB:.2f} GiB at its peak, of {figures['memory'] / GIB:.2f}: state and data "
        f"{figures['arguments'] / GIB:.2f}, temporaries {figures['temporaries'] / GIB:.2f}; "
        f"{100 * figures['updated_in_place']:.0f} % of the state updated in place",
    ]
    seconds = figures["step_seconds"]
    lines.append(
        f"a local step   {figures['flops'] / 1e9:,.1f} GFLOP, {1e3 * figures['at_peak_seconds']:.2f} ms at a device's "
        "peak" + (f", {1e3 * seconds:.2f} ms by the compiler's estimates; without links" if seconds else "")
    )
    lines += ["", f"{'level':<10}{'period':>7}  {'in the program':<40}{'bytes a device':>16}{'ledger':>16}{'ms':>10}"]
    one_network = figures["slices"] == 1
    for level in figures["levels"]:
        start, ledger = f"{level['level']:<10}{level['period']:>7}  ", f"{level['ledger']:>16,}"
        how = "asynchronous" if level["asynchronous"] else "synchronous"
        how += "" if level["conditional"] or level["level"] == "gradient" else ", outside conditionals"
        differ = one_network and sum(level["kinds"].values()) != level["ledger"]
        for kind, size in (level["kinds"] or {"nothing": 0}).items():
            over = " over the data-center network" if kind == "send" else f" ({how})"
            lines.append(f"{start}{kind + over:<40}{size:>16,}{ledger}{1e3 * level['seconds']:>10.3f}")
            start, ledger = " " * len(start), " " * 16
        if differ:
            lines[-1] += "  differ"
    for each in figures["inside"]:
        where = "a worker, in loops" if each["loops"] > 1 else "a worker, each step" if each["loops"] else "a worker"
        lines.append(f"{where:<21}{each['kind']:<38}{each['bytes']:>16,}")
    lines.append(f"communication  {1e3 * figures['communication_seconds']:.3f} ms a local step by the network model")
    return lines


if __name__ == "__main__":
    sys.exit(main(["-m lsgd_jax.compile_for", *sys.argv[1:]]))
