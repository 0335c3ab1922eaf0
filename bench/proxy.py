"""`python -m bench.proxy GATE HOST PORT`: a TCP proxy with a gate (`bench.gate`) before a server; prints its own port.

The bytes go from socket to socket through pipes (splice(2)) and are not copied: counting them costs little. Two
threads a connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

from bench.gate import Gate


def forward(source: socket.socket, target: socket.socket, gate: Gate, counted: bool) -> None:
    """Move bytes until the source ends or either breaks."""
    reading, writing = os.pipe()
    try:
        while True:
            gate.wait_open()
            moved = os.splice(source.fileno(), writing, gate.slice_bytes())
            if not moved:
                break
            gate.wait_open()
            left = moved
            while left:
                left -= os.splice(reading, target.fileno(), left)
            if counted:
                gate.passed(moved)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
    finally:
        os.close(reading)
        os.close(writing)


def connect(client: socket.socket, address: tuple[str, int], gate: Gate) -> None:
    """Serve one client to its end."""
    with client:
        try:
            server = socket.create_connection(address)
        except OSError:
            return
        with server:
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=forward, args=[server, client, gate, False], daemon=True)
            back.start()
            forward(client, server, gate, True)
            back.join()


def main() -> None:
    gate = Gate(Path(sys.argv[1]))
    address = (sys.argv[2], int(sys.argv[3]))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=connect, args=[client, address, gate], daemon=True).start()


if __name__ == "__main__":
    main()
