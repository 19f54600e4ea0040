"""What the environment of a user may have in it, and what becomes of a run then."""

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache
from made_up_runs import a_plan

from lsgd_jax.cluster import processes
from lsgd_jax.commands import command_line, environment
from lsgd_jax.commands.compilation_cache import use_compilation_cache
from lsgd_jax.commands.cpu_devices import make_cpu_devices
from lsgd_jax.commands.environment import set_for_compilers
from lsgd_jax.config.config import Config, usable_cores
from lsgd_jax.config.train import train
from lsgd_jax.errors import InputError

ROOT = Path(__file__).parents[2]
QUICK = ["--steps=4", "--groups=1", "--workers=2", "--model=mlp", "--batch_size=8"]


def run(script: str, *arguments: str, stdout: str = os.devnull, **environment: str) -> tuple[int, str]:
    """A script in a process of its own: its exit code and what it prints on standard error."""
    command = [sys.executable, str(ROOT / "experiments" / script), *arguments]
    with open(stdout, "w") as out:
        done = subprocess.run(
            command, env=os.environ | environment, stdout=out, stderr=subprocess.PIPE, text=True, timeout=300
        )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.thorough
def test_settings_for_other_programs_and_a_full_disk_for_its_output_do_not_end_a_run(tmp_path: Path) -> None:
    """All at once: a process takes seconds to start."""
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: true\nfigure.dpi: \xff\n")
    code, err = run(
        *("train.py", f"--workdir={tmp_path / 'run'}", *QUICK),
        stdout="/dev/full",
        PYTHONSAFEPATH="1",
        MPLBACKEND="foo",
        MATPLOTLIBRC=str(tmp_path / "matplotlibrc"),
        JAX_NUMPY_RANK_PROMOTION="raise",
        JAX_NUMPY_DTYPE_PROMOTION="strict",
        JAX_TRANSFER_GUARD="disallow",
        JAX_DEBUG_INFS="1",
        JAX_NO_TRACING="1",
        JAX_NO_EXECUTION="1",
        HOME="/dev/null",
        TQDM_MININTERVAL="soon",
    )
    assert code == 0, err
    assert err.splitlines()[0] == "standard output cannot be written (No space left on device): going on without"
    assert (tmp_path / "run" / "summary.json").exists()
    assert (tmp_path / "run" / "figures" / "error.png").exists()


def test_help_does_without_docstrings() -> None:
    """As under `python -OO`, where starting a process takes long: it compiles all modules anew."""
    assert command_line.described(None) == ""
    for path in (ROOT / "experiments").glob("*.py"):
        text = path.read_text()
        assert text.count("__doc__") == text.count("described(__doc__)"), path.name


@pytest.mark.parametrize(
    ("version", "given", "level"), [("0.10.1", "1", "3"), ("0.10.1", "0", "0"), ("0.12.0", "1", "1")]
)
def test_an_old_jaxlib_does_not_call_its_cache_an_error_unless_somebody_wants_to_see_it(
    monkeypatch: pytest.MonkeyPatch, version: str, given: str, level: str
) -> None:
    """A program that has imported JAX, such as this one, leaves a 1 to what it starts."""
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", given)
    environment._hush_old_jaxlib()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == level


def test_without_a_device_of_the_kind_there_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    (tmp_path / "convergence").mkdir()
    (tmp_path / "convergence" / "claims.json").write_text("[]")
    code, err = run("theory.py", f"--workdir={tmp_path}", JAX_PLATFORMS="cuda,tpu")
    assert code == 2, err
    assert err.startswith("theory.py: error: JAX finds no device for JAX_PLATFORMS=cuda,tpu")
    assert err.count("\n") == 1
    assert (tmp_path / "convergence" / "claims.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ({"JAX_LOGGING_LEVEL": "FOO"}, 'JAX cannot start (Invalid value "FOO" for JAX flag jax_logging_level): mend'),
        ({"JAX_NUM_CPU_DEVICES": "x"}, 'JAX cannot start (Invalid value "x" for JAX flag jax_num_cpu_devices): mend'),
        ({"JAX_NUM_CPU_DEVICES": "0"}, "JAX finds no device for JAX_NUM_CPU_DEVICES=0 ("),
    ],
)
def test_what_jax_does_not_understand_is_told_in_one_line(tmp_path: Path, variable: dict[str, str], told: str) -> None:
    code, err = run("train.py", f"--workdir={tmp_path / 'run'}", *QUICK, JAX_PLATFORMS="cpu", **variable)
    assert (code, err.count("\n")) == (2, 1), err
    assert told.replace("for JAX_NUM", "for JAX_PLATFORMS=cpu for JAX_NUM") in err
    assert list(tmp_path.iterdir()) == []


def test_whatever_jax_says_where_it_finds_no_device_is_one_line_of_every_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(argv: list[str]) -> int:
        raise KeyError(argv[1])

    guarded = command_line.command(main)
    with pytest.raises(KeyError):  # what is neither of the input nor of the environment is an error of ours
        guarded(["x/train.py", "y"])
    for error, told in ((AssertionError(), ""), (RuntimeError("no cuda\nsee there"), r" (no cuda)")):
        monkeypatch.setattr(jax, "devices", lambda error=error: (_ for _ in ()).throw(error))
        monkeypatch.setenv("JAX_PLATFORMS", "cuda")
        assert guarded(["x/train.py", "y"]) == 2
        hint = "unset that, or install what it needs"
        assert capsys.readouterr().err == f"train.py: error: JAX finds no device for JAX_PLATFORMS=cuda{told}: {hint}\n"
        with pytest.raises(InputError, match="JAX finds no device"):
            processes.devices()


def test_without_compilation_there_is_no_run(tmp_path: Path) -> None:
    with jax.disable_jit():
        for begin in (lambda: train(Config(str(tmp_path / "run"))), lambda: a_plan(tmp_path / "comparison")):
            with pytest.raises(InputError, match=r"JAX_DISABLE_JIT is set, but .*: unset it"):
                begin()
    assert list(tmp_path.iterdir()) == []


def test_loaders_use_the_cores_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        monkeypatch.setattr(os, "cpu_count", lambda: 64)
        assert (usable_cores(), Config("x").loader_process_count) == (1, 1)
        assert Config("x", loader_processes=3).loader_process_count == 3
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of compiled programs of this test's own, used as the command lines use theirs."""
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_, **__: pytest.fail(str(message)))
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs", "jax_enable_compilation_cache")
    before = {name: jax.config.values[name] for name in names}
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation_cache.reset_cache()
    use_compilation_cache(True)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    try:
        yield tmp_path / "lsgd_jax"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_a_compiled_program_that_cannot_be_read_is_compiled_and_kept_anew(cache: Path) -> None:
    def compile_anew() -> Any:
        def of_the_cache(x: jax.Array) -> jax.Array:
            return jnp.sin(x) * 2

        return jax.jit(of_the_cache)(jnp.ones(3))

    def entries() -> dict[str, int]:
        return {path.name: path.stat().st_size for path in cache.iterdir() if "of_the_cache" in path.name}

    compile_anew()
    ((name, whole),) = entries().items()
    other = cache / "jit_of_the_cache_too-0-cache"
    other.write_bytes(b"")
    for size in (whole // 2, 0):
        os.truncate(cache / name, size)
        compile_anew()
        assert entries() == {name: pytest.approx(whole, rel=0.02), other.name: 0}


def test_every_cpu_process_keeps_what_it_compiles(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes.distributed(), "process_id", 3)
    jax.jit(lambda x: jnp.cos(x) * 2)(jnp.ones(3))
    assert list(cache.glob("jit__lambda*"))


@pytest.mark.usefixtures("cache")
def test_a_program_that_xla_cannot_write_down_is_not_complained_of() -> None:
    options = {"xla_cpu_experimental_onednn_custom_call": True}
    outer = jax.jit(lambda x, y: x.T @ y, compiler_options=options)
    assert (outer(jnp.ones((1024, 256)), jnp.ones((1024, 512))) == 1024).all()


@pytest.mark.parametrize(
    ("chosen", "devices"),
    [
        ({}, usable_cores()),
        ({"JAX_NUM_CPU_DEVICES": "3"}, 3),
        ({"XLA_FLAGS": "--xla_force_host_platform_device_count=5"}, 5),
    ],
)
def test_a_command_line_has_a_cpu_device_for_each_core_unless_told_otherwise(
    chosen: dict[str, str], devices: int
) -> None:
    code = "from lsgd_jax.commands.cpu_devices import make_cpu_devices as f; f(); import jax; print(jax.device_count())"
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"} | chosen
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(told.stdout) == devices


def test_devices_are_left_as_they_are_where_jax_has_begun() -> None:
    before = jax.device_count()
    make_cpu_devices()
    assert jax.device_count() == before


@pytest.mark.parametrize("home", [None, "/dev/null"])
def test_without_a_place_for_compiled_programs_they_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], home: str | None
) -> None:
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 12345)  # whom nobody knows
    monkeypatch.delenv("HOME", raising=False) if home is None else monkeypatch.setenv("HOME", home)
    before = jax.config.values["jax_compilation_cache_dir"]
    use_compilation_cache(True)
    told = capsys.readouterr().out
    assert told.startswith("warning: compiled programs are not kept for the next run: ")
    assert told.count("\n") == 1
    todo = "set HOME, or write the path in full" if home is None else "XDG_CACHE_HOME, or add --nocompilation_cache"
    assert told.rstrip().endswith(todo)
    assert jax.config.values["jax_compilation_cache_dir"] == before


def test_the_environment_is_set_for_compilers_and_what_is_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=somewhere")
    monkeypatch.setenv("JAX_PLATFORMS", "tpu")
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v6e-8")
    for name in ("TPU_SKIP_MDS_QUERY", "ALLOW_MULTIPLE_LIBTPU_LOAD", "TPU_WORKER_HOSTNAMES", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    set_for_compilers()
    assert os.environ["JAX_PLATFORMS"] == "cpu", "nothing runs on a TPU"
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=somewhere --xla_gpu_autotune_level=0"
    assert (os.environ["TPU_ACCELERATOR_TYPE"], os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"]) == ("v6e-8", "1")
