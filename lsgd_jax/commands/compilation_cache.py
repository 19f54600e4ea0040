"""Compiled programs that are kept for the next run."""

import contextlib
import os
import pathlib
import re
import types
import warnings
from typing import Any

# Programs that call oneDNN, those in bfloat16 on CPU: XLA cannot write them down.
UNKEPT = "Error writing persistent compilation cache entry for '.+?': MemoryError"
DAMAGED = "Error reading persistent compilation cache entry for '(.+?)': "


def use_compilation_cache(wanted: bool) -> None:
    """Keeps compiled programs for later processes: where JAX's own setting says, or in a folder of ours.

    One that cannot be read is compiled and kept anew; JAX would warn of it, and compile it, in each process.
    """
    import jax

    jax.config.update("jax_enable_compilation_cache", wanted)
    jax.config.update("jax_raise_persistent_cache_errors", False)
    if not wanted:
        return
    _keep_in_every_process()
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder:
        folder = _own_folder()
        if folder is None:
            return
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    warnings.filterwarnings("ignore", UNKEPT)
    _remove_what_is_damaged(pathlib.Path(folder))


def _keep_in_every_process() -> None:
    """Has each of several CPU processes keep what it compiles.

    JAX has the first alone do so, for all; but on CPU it looks for a program under another name in each process: the
    others would compile everything in each run, and in each generation of a run that outlives its processes.
    """
    from jax._src import compiler  # no public setting says so

    jax_compiler: Any = compiler
    if not isinstance(jax_compiler.distributed, _AsTheFirst):
        jax_compiler.distributed = _AsTheFirst(jax_compiler.distributed)


class _AsTheFirst:
    """What JAX's compiler is told of the processes: on CPU, that this is the first."""

    def __init__(self, distributed: Any) -> None:
        self._distributed = distributed

    @property
    def global_state(self) -> Any:
        import jax

        state = self._distributed.global_state
        on_cpu = jax.local_devices()[0].platform == "cpu"
        return types.SimpleNamespace(process_id=0, client=state.client) if on_cpu else state


def _own_folder() -> str | None:
    """In the user's cache; a line tells if that cannot be, and None is returned."""
    from lsgd_jax.cluster.processes import say
    from lsgd_jax.errors import InputError
    from lsgd_jax.files.paths import expanded
    from lsgd_jax.files.writable import make_writable

    try:
        folder = expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "lsgd_jax"
        make_writable(folder, None, "name one by XDG_CACHE_HOME, or add --nocompilation_cache")
    except InputError as error:
        say(f"warning: compiled programs are not kept for the next run: {error}")
        return None
    return str(folder)


def _remove_what_is_damaged(folder: pathlib.Path) -> None:
    """Has each program that JAX warns of removed, before it is compiled: JAX never writes over one."""
    show = warnings.showwarning

    def remove(message: Any, *more: Any, **about: Any) -> None:
        found = re.match(DAMAGED, str(message))
        if found is None:
            return show(message, *more, **about)
        with contextlib.suppress(OSError):  # somebody else's
            for path in folder.iterdir():
                if path.name.startswith(f"{found[1]}-"):  # and a digest that JAX does not tell
                    path.unlink(missing_ok=True)

    warnings.filterwarnings("always", DAMAGED)
    warnings.showwarning = remove
