"""A way between agent and scheduler that tests can cut, in one direction or in both."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """Listens on ``port`` and passes on to ``target``. What a cut holds up is delivered late, as TCP does."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._up, self._down, self._over = threading.Event(), threading.Event(), threading.Event()
        self.open()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._sockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def open(self) -> None:
        self._up.set()
        self._down.set()

    def cut(self, *, up: bool = True, down: bool = True) -> None:
        """``up``: from agents to the scheduler."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def close(self) -> None:
        self._over.set()
        self.open()
        for one in (self._listening, *self._sockets):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                below, _ = self._listening.accept()
                above = socket.create_connection(self._target)
                self._sockets += [below, above]
                for way in ((below, above, self._up), (above, below, self._down)):
                    thread = threading.Thread(target=self._pass_on, args=way, daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, is_open: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65_536):
                is_open.wait()
                sink.sendall(data)
            is_open.wait()
            sink.shutdown(socket.SHUT_WR)
