"""How processes meet, and how they part: the start and the end of a run of several.

Process 0 starts JAX's coordination service, through which the others find each other.
"""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from lsgd_jax.cluster import gpus, processes, proxies
from lsgd_jax.cluster.coordinator import HEARTBEAT_SECONDS
from lsgd_jax.cluster.stopping import stop_with_launcher
from lsgd_jax.errors import (
    ExitCode,
    InputError,
    NotYetError,
    ReportedError,
    RunFailedError,
    agreed_error,
    first_line,
)

# How long the main process waits for the others, at most, before it ends a run that has failed.
LEAVING_SECONDS = 2.0
LEFT = f"{processes.KEYS}/left"


def connect(
    address: str | None,
    count: int | None,
    number: int | None,
    timeout: float,
    heartbeat_timeout: int = HEARTBEAT_SECONDS,
    before_devices: Callable[[], None] = lambda: None,
) -> None:
    """Makes this process one of several, if it is to be; before anything is computed.

    Args:
      address: host:port of the coordinator, which process 0 starts there. On loopback nothing
        listens on other interfaces. None for what JAX detects: Slurm, Open MPI, Kubernetes, TPU pods.
      count: how many processes there are. None for what JAX detects; 1 for this one alone.
      number: which of them this is. None for what JAX detects.
      timeout: seconds in which all have to come; after them this process ends, as at a NotYetError.
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
      before_devices: called where several have joined, and may speak to each other, before JAX finds devices.

    Raises:
      InputError: if that cannot be, or more processes of a machine see the same GPUs than there are of them.
      NotYetError: if the others, or a port, are not there.
    """
    stop_with_launcher()
    if count == 1 or (address is count is number is None and _detected() == 1):
        return
    local = address is not None and is_loopback(address)
    if address is not None and number == 0:
        check_port(address)
    if local:
        os.environ.update(proxies.past_loopback(os.environ))
    jax.config.update("jax_check_proxy_envs", False)  # a time-out names them
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    deadline = threading.Timer(timeout, _miss, (address, timeout))
    deadline.daemon = True
    deadline.start()
    try:
        jax.distributed.initialize(
            address,
            count,
            number,
            # A launcher may itself be in a Slurm step, say, that is nothing to its processes.
            cluster_detection_method=None if None in (address, count, number) else "deactivate",
            initialization_timeout=int(timeout) + 60,  # JAX would end the process with a stack trace
            heartbeat_timeout_seconds=heartbeat_timeout,
            coordinator_bind_address=address if local else None,
        )
        if local:
            keep_gloo_on_loopback()
        processes.introduce()
        _choose_gpus()
        before_devices()
        processes.devices()  # now: it waits for all processes
    except ReportedError:
        raise
    except (ValueError, RuntimeError) as error:
        kind = InputError if isinstance(error, ValueError) else NotYetError
        raise kind(
            f"cannot join the other processes ({first_line(error)}): "
            "give all of --coordinator_address, --num_processes and --process_id, or --num_processes=1"
            f"{_about_proxy(address)}"
        ) from error
    finally:
        deadline.cancel()


def guard(body: Callable[[], int], heartbeat_timeout: int = HEARTBEAT_SECONDS) -> int:
    """Calls what connects this process and returns its exit code; a failure among several ends it at once.

    An ordinary exit would wait for the other processes, and they for this one.

    Args:
      body: calls `connect`, with the same `heartbeat_timeout`.
      heartbeat_timeout: seconds after which JAX tells which process has died, and ends this one too.

    Raises:
      Exception: what `body` raises, in a single process.
    """
    try:
        code = body()
    except ReportedError as error:
        if processes.alone():
            raise
        code = error.exit_code
        if processes.is_main() or not error.agreed:
            _say(f"error: {error}")
    except KeyboardInterrupt:
        if processes.alone():
            raise
        code = ExitCode.INTERRUPTED
        _say("interrupted")
    except Exception as error:
        if processes.alone():
            raise
        code = 1
        if is_of_another(error):
            _say(f"a collective failed; if a process has died, JAX tells which within {heartbeat_timeout} s ({error})")
            time.sleep(heartbeat_timeout + 5)  # meanwhile it ends this process too
        else:
            traceback.print_exc()
    if code and not processes.alone():
        _leave(code)
    return code


def _leave(code: int) -> NoReturn:
    """Ends this process; the coordinator last, for the others not to miss it."""
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        if processes.is_main():
            end = time.monotonic() + LEAVING_SECONDS
            while len(processes.client().key_value_dir_get(LEFT)) < processes.count() - 1 and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.2)
        else:
            processes.client().key_value_set(f"{LEFT}/{processes.number()}", "")
    finally:
        os._exit(code)


def _choose_gpus() -> None:
    """Lets this process use all GPUs that it sees, or its share of them where others of its machine see the same.

    JAX would take a single one, by the process's rank on the machine, wherever Slurm or Open MPI tell that rank.

    Raises:
      InputError: in all processes, if there are too few for each of a machine to have one.
    """
    names, chosen = gpus.visible(), os.environ.get("JAX_LOCAL_DEVICE_IDS", "")  # the user's own choice stays
    view = (socket.gethostname(), ",".join(names), ",".join(gpus.device_files()), chosen)
    views = [tuple(of_process) for of_process in processes.exchange("gpus", view)]
    for (host, seen, _, own_choice), sharing in Counter(views).items():
        count = len(seen.split(",")) if seen and not own_choice else 0
        if 0 < count < sharing:
            raise agreed_error(
                ExitCode.BAD_INPUT,
                f"{sharing} processes on {host} see the same GPUs, {count} in number: start at most as many there, "
                "or set JAX_PLATFORMS=cpu",
            )
        if count % sharing:
            used = count - count % sharing
            processes.say(f"warning: {sharing} processes on {host} use {used} of the {count} GPUs that they all see")
    if chosen:
        return
    own = gpus.share(range(len(names)), views.count(view))[views[: processes.number()].count(view)]
    jax.config.update("jax_cuda_visible_devices", ",".join(map(str, own)) or "all")
    if [host for host, *_ in views].count(view[0]) == 1:
        for kind in ("rocm", "oneapi"):
            jax.config.update(f"jax_{kind}_visible_devices", "all")


def host_and_port(address: str) -> tuple[str, int]:
    """The parts of host:port.

    Raises:
      InputError: if it has another form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator_address={address}: must be host:port")
    return host, int(port)


def is_loopback(address: str) -> bool:
    """Whether host:port is reached from this machine alone."""
    host = host_and_port(address)[0]
    return host in ("localhost", "[::1]") or host.startswith("127.")


def check_port(address: str) -> None:
    """Refuses a port that something else listens on: gRPC would share it."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]") if is_loopback(address) else "", port))
    except OverflowError as error:
        raise InputError(f"--coordinator_address={address}: there is no such port") from error
    except OSError as error:
        message = f"cannot listen on --coordinator_address={address} ({error.strerror}): choose another port, or wait"
        raise NotYetError(message) from error


def _miss(address: str | None, timeout: float) -> NoReturn:
    """Ends a process that has waited too long for the others."""
    missing = "not all processes have come"
    if address is not None and processes.number() != 0:
        try:
            host, port = host_and_port(address)
            socket.create_connection((host.strip("[]"), port), timeout=1).close()
        except OSError as error:
            missing = f"no coordinator answers at {address} ({error.strerror or error})"
    todo = f"start process 0 first, and all with one address{_about_proxy(address)}"
    try:
        _say(f"error: {missing} within --connect_timeout={timeout:g} s: {todo}")
    finally:
        os._exit(ExitCode.NOT_YET)


def _about_proxy(address: str | None) -> str:
    """What to do about a proxy that may stand between the processes."""
    host = None if address is None else host_and_port(address)[0].strip("[]")
    name = proxies.proxy_to(host, os.environ)
    return f"; {name} is set: unset it, or list {host or 'the machines'} in no_proxy" if name else ""


def _say(line: str) -> None:
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr, flush=True)


def is_of_another(error: Exception) -> bool:
    """Whether an error says that a collective, or the coordinator, has failed."""
    return any(name in str(error) for name in ("Gloo", "NCCL", "UNAVAILABLE", "coordination service"))


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turns what a collective raises where another process has ended into one line, in a script of one's own.

    Raises:
      RunFailedError: what to do.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if processes.alone() or not is_of_another(error):
            raise
        message = f"a collective failed, most likely since another process has ended ({first_line(error)})"
        raise RunFailedError(
            f"{message}: start all again, with resume=True to go on from the last checkpoint"
        ) from None


def _detected() -> int:
    """The number of processes of the cluster that JAX detects; 1 if it detects none."""
    from jax._src.clusters import ClusterEnv

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is missing to detect one
            for kind in ClusterEnv._cluster_types:
                if not kind.opt_in_only_method and kind.is_env_present():
                    return kind.get_process_count()
    except Exception as error:  # each kind of cluster has its own
        raise InputError(
            f"cannot find out how many processes there are ({first_line(error)}): "
            "give --num_processes=1, or --coordinator_address, --num_processes and --process_id"
        ) from error
    return 1


def keep_gloo_on_loopback() -> None:
    """Gloo listens where the machine's name leads; JAX has no option for it, but its factory has an argument."""
    from jax._src import xla_bridge
    from jax._src.lib import _jax

    def make_client() -> Any:
        client = processes.client()
        if client is None:  # this process is alone by now
            return xla_bridge.make_cpu_client()
        return xla_bridge.make_cpu_client(
            _jax.make_gloo_tcp_collectives(distributed_client=client, hostname="127.0.0.1")
        )

    xla_bridge.register_backend_factory("cpu", make_client, priority=0, fail_quietly=False)
