"""A slow way to the store: whatever uses it takes as long as a story needs."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

_SLICE_BYTES = 16 << 10


class SlowStore:
    """Forwards connections to an S3 server at `rate_bytes` a second in each direction; None is as fast as it goes.

    It listens on the server's own address, so that pods reach it, on a port of its own. Any thread may set the rate.
    """

    def __init__(self, endpoint: str) -> None:
        url = urlsplit(endpoint)
        self._server = (str(url.hostname), url.port or 80)
        self._socket = socket.create_server((self._server[0], 0))
        self.endpoint = f"http://{self._server[0]}:{self._socket.getsockname()[1]}"
        self.rate_bytes: int | None = None
        self._up, self._down = _Lane(self), _Lane(self)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(self._server, 5)
        except OSError:
            client.close()
            return
        server.settimeout(None)
        back = threading.Thread(target=self._down.pump, args=[server, client], daemon=True)
        back.start()
        self._up.pump(client, server)
        back.join()
        client.close()
        server.close()

    def close(self) -> None:
        self._socket.close()


class _Lane:
    """One direction; all its connections share the rate."""

    def __init__(self, of: SlowStore) -> None:
        self._of = of
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(_SLICE_BYTES):
                self._wait(len(data))
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _wait(self, count: int) -> None:
        rate = self._of.rate_bytes
        if rate is None:
            return
        with self._lock:  # the turn of this slice
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + count / rate
            delay = self._free_at - now
        time.sleep(delay)
