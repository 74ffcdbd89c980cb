import contextlib
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import pgmap

# Longest wait for anything; reaching it is a failure.
BOUND = 30.0

# A process that is started in the background may ignore SIGINT, and its children would too.
signal.signal(signal.SIGINT, signal.default_int_handler)


def until(what: str, holds) -> None:
    """Waits until `holds()`."""
    end = time.monotonic() + BOUND
    while not holds():
        assert time.monotonic() < end, f"not within {BOUND} s: {what}"
        time.sleep(0.001)


class Child:
    """Another interpreter, which runs `code` and says lines."""

    def __init__(self, code: str, *arguments: str) -> None:
        command = [sys.executable, "-c", code, *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def line(self) -> str:
        assert self.process.stdout is not None
        # One that says nothing is ended, and then has said an empty line.
        bound = threading.Timer(BOUND, self.process.kill)
        bound.start()
        try:
            return self.process.stdout.readline().strip()
        finally:
            # A cancelled timer's thread is alive until it is joined, and tests count threads.
            bound.cancel()
            bound.join()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(BOUND)

    def end(self) -> int:
        """Ends its input, and returns how it ends."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(BOUND)


@pytest.fixture
def start() -> Iterator[type[Child]]:
    """Starts other interpreters, which are killed at the end of the test."""
    children: list[Child] = []

    def begin(code: str, *arguments: str) -> Child:
        children.append(Child(code, *arguments))
        return children[-1]

    yield begin
    for child in children:
        with contextlib.suppress(ProcessLookupError):
            child.kill()


@pytest.fixture
def pool() -> Iterator[pgmap.Pool]:
    with pgmap.Pool.create("64MiB") as pool:
        yield pool


@pytest.fixture
def socket(tmp_path, pool) -> str:
    """Where the pool is served to other processes."""
    path = str(tmp_path / "pool.sock")
    pool.serve(path)
    return path
