"""A service of the examples in a process of its own, and its clients, which use nothing but sockets."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

ROOT = Path(__file__).parents[2]
PATIENCE = 30.0
"""Seconds that an answer may take, on a machine that is busy with something else."""
LAST_SECONDS = 30.0
"""Seconds in which a service has to end that was told to: its own part takes less than five, the interpreter's the rest."""

Answer: TypeAlias = tuple[int, dict[str, Any]]


class Message(NamedTuple):
    """A server-sent event."""

    kind: str
    facts: dict[str, Any]


class Watcher:
    """A client with an open stream of events."""

    def __init__(self, port: int, path: str, receive_buffer: int | None = None) -> None:
        self.connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        self.connection.connect()
        if receive_buffer is not None:
            self.connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.connection.request("GET", path)
        self.response = self.connection.getresponse()
        assert self.response.getheader("content-type", "").startswith("text/event-stream")

    def messages(self) -> Iterator[Message]:
        """Yield what comes, until the stream ends."""
        kind = "message"
        for line in map(bytes.decode, self.response):
            name, _, value = line.rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield Message(kind, json.loads(value))

    def next(self, kind: str, matching: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """Read up to the next message of a kind that matches."""
        return next(facts for found, facts in self.messages() if found == kind and matching(facts))

    def close(self) -> None:
        """Go away."""
        self.response.close()
        self.connection.close()


class Service:
    """A service in a process of its own."""

    def __init__(self, example: str, directory: Path, *arguments: str) -> None:
        self.directory = directory
        self.log = directory / "stderr.txt"
        command = [sys.executable, "-W", "error", str(ROOT / "examples" / example), "--port", "0", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
        assert self.process.stdout is not None
        found = re.match(r"serving on http://127\.0\.0\.1:(\d+)$", self.process.stdout.readline())
        assert found is not None, self.log.read_text()
        self.port = int(found[1])

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Answer:
        """Send a request and return status and answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            connection.request(method, path, body, {"content-type": "application/json"} | headers)
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if text.startswith("{") else {"error": text}
        finally:
            connection.close()

    def post(self, path: str, **arguments: Any) -> dict[str, Any]:
        """Ask for something that succeeds."""
        status, answer = self.ask("POST", path, json.dumps(arguments))
        assert status in (200, 201), answer
        return answer

    def status(self) -> dict[str, Any]:
        """Return what the service says of its run."""
        return self.ask("GET", "/run")[1]

    def wait_until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Ask for the status until it fits."""
        deadline = time.monotonic() + PATIENCE
        while not condition(status := self.status()):
            assert time.monotonic() < deadline, status
        return status

    def end(self, number: int | None = None) -> float:
        """Wait for the end of the process, after a signal where one is given; return the seconds it took."""
        began = time.monotonic()
        if number is not None:
            self.process.send_signal(number)
        self.process.wait(LAST_SECONDS)
        return time.monotonic() - began

    def newest_checkpoint(self) -> str:
        """Return the name of the checkpoint that was committed last."""
        (pointer,) = self.directory.glob("runs/*/last_checkpoint")
        name = pointer.read_text().strip()
        assert (pointer.parent / "checkpoints" / name / "manifest.json").is_file()
        return name


@contextmanager
def serving(example: str, directory: Path, *arguments: str) -> Iterator[Service]:
    """Run a service, and leave no process behind."""
    service = Service(example, directory, *arguments)
    try:
        yield service
    finally:
        service.process.kill()
        service.process.communicate()
    log = service.log.read_text()
    assert "Traceback" not in log or "timeout graceful shutdown exceeded" in log, log  # uvicorn says that with a traceback
