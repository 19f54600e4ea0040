"""Who trains together in a run that outlives its processes: a coordinator that all are connected to.

It forms generations. A generation is a set of processes that are connected by JAX; when one of them is lost, or
another one comes, that generation is over, and who is there forms the next. The coordinator lives in the launcher, or
in process 0 where there is none: it has to live as long as the run. It knows nothing of what is trained.

Messages are JSON, one a line. A process sends `join`, with the steps that it can go on from (none of a newcomer), and
waits for `generation`; it sends `beat` every second, and `leave` when its work is done. The coordinator sends
`generation`; `lost` where a member is gone; `wanted` where somebody waits to be taken in; `evicted` to one that has
been silent; `finished` to one that comes too late; and `end`, with a reason, to one that is not to go on.
"""

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

# In the environment of a process whose launcher has the coordinator.
COORDINATED = "LSGD_JAX_COORDINATED"
# As how many the launcher has started a process.
ONE_OF = "LSGD_JAX_ONE_OF"
# After so long without a heartbeat a process counts as dead, by default, and JAX ends the others.
HEARTBEAT_SECONDS = 15
# How long another service of JAX may take to end; nobody uses it any more.
SHUTDOWN_SECONDS = 5


class Member:
    """A connected process, as the coordinator knows it.

    Attributes:
      number: which process it is; None until it has joined once.
      steps: that it can go on from; None while it trains.
      generation: the last one that it has been told of.
      heard: when it was last heard of.
      left: whether its work is done.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.number: int | None = None
        self.steps: list[int] | None = None
        self.generation = 0
        self.heard = time.monotonic()
        self.left = False

    def tell(self, **message: Any) -> None:
        """Sends a message; of one that is gone its reader hears."""
        with contextlib.suppress(OSError):
            self.connection.sendall(json.dumps(message).encode() + b"\n")


class Service(NamedTuple):
    """JAX's coordination service of a generation, and who may still be connected to it."""

    service: Any
    users: set[Member]


class Coordinator:
    """Forms generations, in threads of this process.

    Args:
      address: (host, port) to listen on; of port 0 any that is free.
      count: how many processes form the first generation.
      heartbeat_timeout: seconds without a sign of life after which a process counts as lost.
    """

    def __init__(self, address: tuple[str, int], count: int, heartbeat_timeout: float) -> None:
        self._host, self._count, self._timeout = address[0], count, heartbeat_timeout
        self._listener = socket.create_server(
            address, family=socket.AF_INET6 if ":" in address[0] else socket.AF_INET, backlog=max(count, 16)
        )
        self._lock = threading.RLock()
        self._members: set[Member] = set()  # all who are connected
        self._training: set[Member] = set()  # those of the generation
        self._services: list[Service] = []
        self._ending: list[threading.Thread] = []
        self._generation, self._over, self._finished, self._closed = 0, True, False, False
        for task in (self._accept, self._watch):
            threading.Thread(target=task, daemon=True, name="coordinator").start()

    @property
    def port(self) -> int:
        """On which it listens."""
        return self._listener.getsockname()[1]

    def present(self) -> int:
        """How many processes are connected whose work is not done."""
        with self._lock:
            return sum(not member.left for member in self._members)

    def close(self) -> None:
        """Ends it; who is still connected notices."""
        with self._lock:
            self._closed = True
            self._listener.close()
            for member in self._members:
                member.connection.close()
            while self._services:
                self._end(self._services.pop())
            ending = list(self._ending)
        for thread in ending:
            thread.join(2 * SHUTDOWN_SECONDS)

    def _accept(self) -> None:
        while not self._closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            member = Member(connection)
            with self._lock:
                self._members.add(member)
            threading.Thread(target=self._read, args=(member,), daemon=True, name="coordinator").start()

    def _read(self, member: Member) -> None:
        """Hears one process, until its connection ends."""
        try:
            with member.connection.makefile() as lines:
                for line in lines:
                    with self._lock:
                        member.heard = time.monotonic()
                        self._hear(member, json.loads(line))
        except (OSError, ValueError):
            pass  # it is gone in the middle of a line
        with self._lock:
            self._members.discard(member)
            self._forget(member)
            if not self._closed:
                self._lose(member)
                self._form()

    def _hear(self, member: Member, message: dict[str, Any]) -> None:
        if "join" in message:
            if message["after"] < member.generation:
                return  # it has crossed with the word of that
            known = member.number is not None
            if message["broken"]:
                self._lose(member)
            # Of one that has been lost to the others no state counts, whether it knows already or not.
            member.number, member.steps = message["join"], message["steps"] if known or not member.generation else []
            self._forget(member)
            self._training.discard(member)
            for other in [one for one in self._members if one is not member and one.number == member.number]:
                self._lose(other)
                other.number = None
                other.tell(end=f"process {member.number} has been started again meanwhile")
            if not self._over and not known:
                for other in self._training:
                    other.tell(wanted=True)
            self._form()
        elif "leave" in message:
            member.left = True
            self._training.discard(member)
            self._finished = not self._training
            self._form()

    def _lose(self, member: Member) -> None:
        """A member of the generation is gone: the generation is over."""
        if member in self._training:
            self._training.discard(member)
            self._over = True
            for other in self._training:
                other.tell(lost=member.number)

    def _form(self) -> None:
        """Forms a generation, if all who are there have joined, and nobody is in the old one."""
        present = [member for member in self._members if not member.left and member.number is not None]
        if any(member in self._training for member in present) or not present:
            return
        if self._finished:
            for member in present:
                member.tell(finished=True)
            return
        if self._generation == 0 and len(present) < self._count:
            return
        members = sorted(present, key=lambda member: member.number or 0)
        kept = [set(member.steps) for member in members if member.steps]
        common = set.intersection(*kept) if kept else set()
        if kept and not common:
            for member in members:
                member.tell(end="the processes have no step in common from which they could go on")
            return
        self._generation += 1
        numbers = [member.number for member in members]
        newcomers = [member.number for member in members if not member.steps]
        address = self._serve(members) if len(members) > 1 else None
        self._training, self._over = set(members), False
        for member in members:
            member.tell(
                generation=self._generation,
                members=numbers,
                newcomers=newcomers,
                step=max(common) if common else None,
                address=address,
            )
            member.steps, member.generation = None, self._generation

    def _serve(self, members: Sequence[Member]) -> str:
        """The address of a new coordination service of JAX, in which members are numbered from 0 on."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # it would tell of each process that comes
        from jaxlib import _jax

        with socket.create_server((self._host, 0)) as probe:
            address = f"{self._host}:{probe.getsockname()[1]}"
        service = _jax.get_distributed_runtime_service(
            address,
            len(members),
            heartbeat_timeout=int(self._timeout),
            shutdown_timeout=SHUTDOWN_SECONDS,
            recoverable=True,  # what is lost is told by this coordinator: JAX would end all
        )
        self._services.append(Service(service, set(members)))
        return address

    def _forget(self, member: Member) -> None:
        """A process is not connected to services of before any more; those that nobody is connected to end."""
        for service in self._services:
            service.users.discard(member)
        for service in [one for one in self._services if not one.users]:
            self._services.remove(service)
            self._end(service)

    def _end(self, service: Service) -> None:
        self._ending.append(threading.Thread(target=service.service.shutdown, daemon=True, name="coordinator"))
        self._ending[-1].start()

    def _watch(self) -> None:
        """Counts who is silent as lost. When it wakes up, it hears that it is not a member, and may join again."""
        while not self._closed:
            time.sleep(min(1.0, self._timeout / 4))
            with self._lock:
                limit = time.monotonic() - self._timeout
                for member in [one for one in self._members if one.heard < limit and one.number is not None]:
                    self._lose(member)
                    member.number, member.steps = None, None
                    member.tell(evicted=True)
                self._form()
