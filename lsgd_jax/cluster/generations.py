"""A process in a run that outlives its processes: how it joins a generation, and how it leaves one that is over.

JAX can be told to connect once. Between generations this process therefore ends all that JAX has, its devices, programs
and connections, and begins anew; what is to be kept has to be in NumPy arrays.
"""

import contextlib
import ctypes
import gc
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.backend import clear_backends

from lsgd_jax.cluster import processes, proxies, sockets
from lsgd_jax.cluster.coordinator import COORDINATED, Coordinator
from lsgd_jax.cluster.joining import check_port, host_and_port, is_loopback, is_of_another, keep_gloo_on_loopback
from lsgd_jax.cluster.stopping import stop_with_launcher
from lsgd_jax.errors import InputError, NotYetError, ReportedError, RunFailedError

BEAT_SECONDS = 1.0
# In which all members of a generation have to connect; after them they join another.
CONNECT_SECONDS = 20
# In which a process has to come back from what it waits for, when a generation is over.
PARTING_SECONDS = CONNECT_SECONDS + 5
CANNOT_BE_INTERRUPTED = "a collective cannot be interrupted"
# How long process 0 waits for others to come to their end too, where it has the coordinator.
LEAVING_SECONDS = 30


class Generation(NamedTuple):
    """Processes that train together until one is lost, or another comes.

    Attributes:
      number: from 1 on.
      members: their numbers, ascending; JAX numbers them from 0 on in that order.
      newcomers: those of them who have no state.
      step: from which they go on, in local steps; None where nobody has a state.
      address: host:port of JAX's coordination service; None of a process alone.
    """

    number: int
    members: tuple[int, ...]
    newcomers: tuple[int, ...]
    step: int | None
    address: str | None


class RunFinishedError(Exception):
    """The run has come to its end without this process."""


class GenerationOverError(Exception):
    """The members have agreed, after a round, to take in who waits."""


class Membership:
    """This process, as a member.

    Args:
      address: (host, port) of the coordinator.
      number: which process this is.
      heartbeat_timeout: seconds, as the coordinator has it.
      connect_timeout: seconds in which there has to be one.

    Attributes:
      wanted: whether somebody waits to be taken in.
      lost: set when the generation is over: a member is gone, or this process was silent for too long.
      evicted: whether the latter.

    Raises:
      NotYetError: if there is no coordinator.
    """

    def __init__(self, address: tuple[str, int], number: int, heartbeat_timeout: int, connect_timeout: float) -> None:
        self.number, self._heartbeat_timeout = number, heartbeat_timeout
        self.wanted, self.lost, self.evicted = False, threading.Event(), False
        self._news, self._sending = threading.Condition(), threading.Lock()
        self._answer: dict[str, Any] | None = None
        self._told = 0  # the last generation that this process has been told of
        self._connected = False  # whether JAX is, to the members of a generation
        self._gloo: frozenset[int] = frozenset()  # ports of all members at which Gloo listens
        self._connection = _connected(address, connect_timeout)
        for task in (self._listen, self._beat):
            threading.Thread(target=task, daemon=True, name="membership").start()

    def join(self, steps: list[int]) -> Generation:
        """Joins the next generation, and connects JAX to its members. It waits for them.

        Args:
          steps: that this process has kept, and can go on from; none if it has no state.

        Raises:
          RunFailedError: if it is not to go on.
          RunFinishedError: if it comes too late.
        """
        broken = False
        while True:
            self._send(join=self.number, after=self._told, steps=[] if self.evicted else steps, broken=broken)
            generation = self._wait()
            if generation is None:
                continue
            if self._connect(generation):
                return generation
            broken = not self.lost.is_set()
            self.part()

    def is_over(self, error: Exception) -> bool:
        """Whether an error comes of the end of the generation. It waits for a while for the coordinator to tell."""
        if isinstance(error, GenerationOverError | ReportedError):
            return isinstance(error, GenerationOverError)
        return self.lost.wait(self._heartbeat_timeout + 5 if is_of_another(error) else 0.5)

    def part(self) -> None:
        """Ends all that JAX has in this process: arrays, programs, devices and connections."""
        state, self._gloo, self._connected = processes.distributed(), frozenset(), False
        client, state.client = state.client, None
        state.process_id, state.num_processes = 0, 1
        processes.forget()
        clear_backends()
        gc.collect()
        _give_back_memory()
        if client is not None:
            _shut_down(client)

    def leave(self) -> None:
        """Tells that the work of this process is done."""
        self._connected = False  # there is nothing to come back from any more
        self._send(leave=True)

    def _connect(self, generation: Generation) -> bool:
        """Connects JAX to the members; whether they have all come."""
        from jaxlib import _jax

        state = processes.distributed()
        if generation.address is None:
            return True
        state.process_id, state.num_processes = generation.members.index(self.number), len(generation.members)
        state.coordinator_address = generation.address
        client = _jax.get_distributed_runtime_client(
            generation.address,
            state.process_id,
            init_timeout=CONNECT_SECONDS,
            heartbeat_timeout=self._heartbeat_timeout,
            shutdown_on_destruction=False,
            use_compression=True,
        )
        self._connected = True
        try:
            client.connect()
            state.client = client
            others = sockets.listening_ports()
            if is_loopback(generation.address):
                keep_gloo_on_loopback()
            processes.introduce()
            processes.devices()  # now: it waits for all
            own = sorted(sockets.listening_ports() - others)
            self._gloo = frozenset(port for ports in processes.exchange("ports", own) for port in ports)
        except Exception:
            return False
        return not self.lost.is_set()

    def _wait(self) -> Generation | None:
        """The next generation; None where this process has to join as a newcomer.

        Raises:
          RunFailedError, RunFinishedError: as `join`.
        """
        with self._news:
            self._news.wait_for(lambda: self._answer is not None)
            answer, self._answer = self._answer, None
        assert answer is not None
        if "end" in answer:
            raise RunFailedError(answer["end"])
        if "finished" in answer:
            raise RunFinishedError
        if "evicted" in answer:
            return None
        members, newcomers = tuple(answer["members"]), tuple(answer["newcomers"])
        self.evicted = False
        return Generation(answer["generation"], members, newcomers, answer["step"], answer["address"])

    def _listen(self) -> None:
        """Hears the coordinator, until it is gone."""
        try:
            with self._connection.makefile() as lines:
                for line in lines:
                    message = json.loads(line)
                    if "wanted" in message:
                        self.wanted = True
                    elif "lost" in message:
                        self._interrupt()
                    else:
                        if "evicted" in message:
                            self.evicted = True
                            self._interrupt()
                        elif "generation" in message:  # what was heard before is of older ones
                            self._told, self.wanted = message["generation"], False
                            self.lost.clear()
                        with self._news:
                            self._answer = message
                            self._news.notify()
        except (OSError, ValueError):
            pass
        with self._news:
            self._answer = {"end": "the coordinator is gone"}
            self._news.notify()
        self._interrupt()

    def _interrupt(self) -> None:
        """Ends what the main thread may be waiting for: messages of a collective, or a word of JAX's service."""
        self.lost.set()
        if self._connected:
            timer = threading.Timer(PARTING_SECONDS, self._end_if_stuck, [self._told])
            timer.daemon = True  # the end of a process does not wait for it
            timer.start()
        sockets.end_connections(self._gloo)
        client = processes.client()
        if client is not None:
            _shut_down(client)

    def _end_if_stuck(self, generation: int) -> None:
        """Ends this process, where nothing has ended what it waits for: Gloo can miss the end of a connection."""
        if self._connected and self._told == generation:
            print(f"{CANNOT_BE_INTERRUPTED}: this process ends", file=sys.stderr, flush=True)
            os._exit(1)

    def _beat(self) -> None:
        while True:
            time.sleep(BEAT_SECONDS)
            self._send(beat=True)

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(OSError), self._sending:
            self._connection.sendall(json.dumps(message).encode() + b"\n")


@contextlib.contextmanager
def membership(
    address: str | None, count: int | None, number: int | None, connect_timeout: float, heartbeat_timeout: int
) -> Iterator[Membership]:
    """This process as a member, until its work is done. Process 0 has the coordinator, if no launcher has it.

    Args:
      address: host:port of the coordinator.
      count: how many processes form the first generation.
      number: which of them this is.
      connect_timeout: seconds in which the coordinator has to be there.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
      InputError: if not all is given.
      NotYetError: if there is no coordinator, or its port is taken.
    """
    stop_with_launcher()
    if address is None or count is None or number is None:
        raise InputError("--live: give all of --coordinator_address, --num_processes and --process_id")
    if not 0 <= number < count:
        raise InputError(f"--process_id={number}: must be at least 0 and less than --num_processes={count}")
    where = host_and_port(address)
    if is_loopback(address):
        os.environ.update(proxies.past_loopback(os.environ))
    jax.config.update("jax_enable_recoverability", True)
    with contextlib.ExitStack() as held:
        coordinator = None
        if number == 0 and COORDINATED not in os.environ:
            check_port(address)
            coordinator = Coordinator(where, count, heartbeat_timeout)
            held.callback(coordinator.close)
        member = Membership(where, number, heartbeat_timeout, connect_timeout)
        yield member
        member.leave()
        end = time.monotonic() + LEAVING_SECONDS
        while coordinator is not None and coordinator.present() and time.monotonic() < end:
            time.sleep(0.05)  # the others still need it


def _connected(address: tuple[str, int], timeout: float) -> socket.socket:
    """A connection to the coordinator.

    Raises:
      NotYetError: if there is none.
    """
    end = time.monotonic() + timeout
    while True:
        try:
            connection = socket.create_connection(address, timeout=5)
            connection.settimeout(None)
            return connection
        except OSError as error:
            if time.monotonic() > end:
                raise NotYetError(
                    f"no coordinator answers at {address[0]}:{address[1]} ({error.strerror or error}) within "
                    f"--connect_timeout={timeout:g} s: start process 0 first, and all with one address"
                ) from error
            time.sleep(0.1)


def _give_back_memory() -> None:
    """Gives what has been freed back to the system, which glibc does not by itself: some 100 MB a generation."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def _shut_down(client: Any) -> None:
    with contextlib.suppress(Exception):  # it has been, or the service is gone
        client.shutdown()
