"""The TCP sockets of this process, whoever has opened them: Gloo can be told to end a connection in no other way."""

import contextlib
import os
import socket
from collections.abc import Collection, Iterator


def _sockets() -> Iterator[socket.socket]:
    """Copies of this process's TCP sockets, whoever has opened them."""
    for name in os.listdir("/dev/fd"):
        try:
            copy = os.dup(int(name))
        except OSError:
            continue  # it is closed by now
        try:
            found = socket.socket(fileno=copy)
        except OSError:
            os.close(copy)  # no socket
            continue
        if found.family in (socket.AF_INET, socket.AF_INET6) and found.type == socket.SOCK_STREAM:
            yield found
        else:
            found.close()


def _listens(found: socket.socket) -> bool:
    return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def listening_ports() -> set[int]:
    """At which this process listens."""
    ports = set()
    for found in _sockets():
        with found, contextlib.suppress(OSError):
            if _listens(found):
                ports.add(found.getsockname()[1])
    return ports


def end_connections(ports: Collection[int]) -> None:
    """Ends this process's connections from or to any of these ports: who waits for a message there gets an error.

    Only reading is ended: Gloo then closes them itself. A write that failed first would be waited for without end.
    """
    for found in _sockets():
        with found, contextlib.suppress(OSError):  # it is not connected any more
            if not _listens(found) and {found.getsockname()[1], found.getpeername()[1]} & set(ports):
                found.shutdown(socket.SHUT_RD)
