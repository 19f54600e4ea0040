"""The TCP sockets of this process."""

import socket

from lsgd_jax.cluster.sockets import end_connections, listening_ports


def test_connections_of_a_port_are_ended_and_no_others() -> None:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
        assert set(ports) <= listening_ports()
        with (
            socket.create_connection(("127.0.0.1", ports[0])) as ended,
            socket.create_connection(("127.0.0.1", ports[1])) as kept,
            one.accept()[0] as ended_there,
            other.accept()[0] as kept_there,
        ):
            end_connections(ports[:1])
            assert ended.recv(1) == ended_there.recv(1) == b""
            ended.sendall(b"x")  # no error
            kept.sendall(b"x")
            assert kept_there.recv(1) == b"x"
            assert set(ports) <= listening_ports()
    assert not set(ports) & listening_ports()
