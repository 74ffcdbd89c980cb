"""Other processes: killed, forked, at their end, and with many threads."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

import pgmap
from conftest import until

READER = """
import sys, pgmap
pool = pgmap.Pool.connect(sys.argv[1], label="reader")
view = memoryview(pool.get("block"))
print(bytes(view[:6]).decode(), flush=True)
sys.stdin.read()
"""

OWNER = """
import sys, pgmap
pool = pgmap.Pool.create("16MiB")
pool.serve(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_reader_gives_everything_back(pool, socket, start):
    pool.put("block", b"tokens" + bytes(1 << 20))
    reader = start(READER, socket)
    assert reader.line() == "tokens"
    assert pool.info().clients == 2
    pool.unlink("block")
    assert pool.info().draining > 1 << 20
    reader.kill()
    until("the frames are free", lambda: pool.info().draining == 0)


def test_a_killed_writer_leaves_nothing(pool, socket, start):
    code = """
import sys, pgmap
writer = pgmap.Pool.connect(sys.argv[1]).writer("block", 1 << 20)
memoryview(writer)[:] = b"x" * (1 << 20)
print("written", flush=True)
sys.stdin.read()
"""
    writer = start(code, socket)
    assert writer.line() == "written"
    assert pool.info().reserved == 1 << 20
    writer.kill()
    until("the frames are free", lambda: pool.info().reserved == 0)
    assert "block" not in pool


def test_an_owner_polls_for_requests_as_long_as_it_is_told(start, tmp_path):
    code = OWNER.replace("(sys.argv[1])", "(sys.argv[1], busy_poll=1.0)")
    path = str(tmp_path / "pool.sock")
    owner = start(code, path)
    assert owner.line() == "ready"

    def ticks() -> int:
        stat = Path(f"/proc/{owner.process.pid}/stat").read_text()
        return sum(map(int, stat[stat.rindex(")") :].split()[12:14]))

    with pgmap.Pool.connect(path) as pool:
        start_ticks = ticks()

        def has_polled() -> bool:
            pool.info()
            return ticks() >= start_ticks + 20

        # 200 ms of a processor, of which one that sleeps needs a hundredth for these.
        until("it polls", has_polled)


def test_what_is_no_busy_poll_is_refused(pool, tmp_path):
    path = str(tmp_path / "pool.sock")
    with pytest.raises(pgmap.Error, match="busy poll of 61s: it may last 60s at most"):
        pool.serve(path, busy_poll=61)
    for nonsense in (-1.0, float("nan"), 1e300):
        with pytest.raises(ValueError, match="not a time in seconds"):
            pool.serve(path, busy_poll=nonsense)
    assert not os.path.exists(path), "nobody was served"
    pool.serve(path, busy_poll=0)


def states(pid: int) -> list[str]:
    """The states of a process's threads, as the kernel says them."""
    stats = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return [stat.rpartition(") ")[2][0] for stat in stats]


def test_views_outlive_a_killed_owner(tmp_path, start):
    socket = str(tmp_path / "s")
    owner = start(OWNER, socket)
    assert owner.line() == "ready"
    pool = pgmap.Pool.connect(socket, deadline=2)
    pool.put("block", b"tokens")
    view = memoryview(pool.get("block"))
    owner.kill()
    assert view == b"tokens"
    assert pool.get("block").read() == b"tokens", "a get needs no owner"
    assert pool.exists_prefix(["block", "nothing"]) == 1
    started = time.monotonic()
    with pytest.raises(pgmap.OwnerGone) as raised:
        pool.put("more", b"")
    assert raised.value.kind == "owner_gone" and time.monotonic() - started < 10
    assert view == b"tokens"


def test_a_stopped_owner_is_a_timeout(tmp_path, start):
    socket = str(tmp_path / "s")
    owner = start(OWNER, socket)
    assert owner.line() == "ready"
    pool = pgmap.Pool.connect(socket)
    pool.deadline = 0.2
    assert pool.deadline == 0.2
    os.kill(owner.process.pid, signal.SIGSTOP)
    until("every thread of it is stopped", lambda: set(states(owner.process.pid)) == {"T"})
    with pytest.raises(pgmap.TimedOut, match=str(owner.process.pid)) as raised:
        pool.put("block", b"")
    assert isinstance(raised.value, TimeoutError) and raised.value.errno == 110
    os.kill(owner.process.pid, signal.SIGCONT)
    pool.deadline = 30
    pool.put("block", b"tokens")
    with pytest.raises(ValueError, match="not a time in seconds"):
        pool.deadline = -1


def test_nobody_there_is_an_error(tmp_path):
    with pytest.raises(pgmap.SystemFailure) as raised:
        pgmap.Pool.connect(tmp_path / "nothing")
    assert raised.value.errno == 2


def in_child(act) -> int:
    """Runs `act` in a forked child; returns how that ends."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + 30
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1
        time.sleep(0.001)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_nothing_and_takes_nothing(pool, socket):
    pool.put("block", b"tokens")
    pin = pool.get("block")
    view = memoryview(pin)
    writer = pool.writer("draft", 8)

    def act():
        nonlocal pin, view, writer, pool
        for call in (
            lambda: pool.get("block"),
            lambda: pool.put("more", b""),
            lambda: pool.exists("block"),
            lambda: pool.info(),
            lambda: pin.read(),
        ):
            with pytest.raises(pgmap.Forked):
                call()
        own = pgmap.Pool.connect(socket)
        assert own.get("block").read() == b"tokens"
        own.close()
        view.release()
        del pin, view, writer
        pool.close()

    assert in_child(act) == 0
    assert pool.info().reserved == 4096, "the parent's draft is untouched"
    memoryview(writer)[:] = b"from here"[:8]
    writer.commit()
    pool.unlink("block")
    assert pool.info().draining == 4096, "the parent's pin is untouched"
    assert view == b"tokens"


@pytest.mark.parametrize(
    "end",
    ["", "sys.exit(0)", "import os; os._exit(0)", "raise SystemExit(0)", "del pool"],
    ids=["falls off", "exit", "_exit", "raise", "views only"],
)
def test_an_interpreter_ends_while_views_live(pool, socket, start, end):
    code = f"""
import sys, threading, pgmap
owner = pgmap.Pool.create("1MiB")
owner.put("a", b"a")
pool = pgmap.Pool.connect({socket!r})
pool.put("block", b"tokens")
keep = [memoryview(pool.get("block")), owner.get("a"), pool.writer("draft", 8)]
keep.append(memoryview(keep[2]))
keep.append(keep)
threading.Thread(target=lambda: pool.get("block"), daemon=True).start()
print("ready", flush=True)
{end}
"""
    child = start(code)
    assert child.line() == "ready"
    assert child.end() == 0
    pool.unlink("block")
    until("everything came back", lambda: pool.info().draining == 0 == pool.info().reserved)


def test_a_thousand_threads_of_which_three_hundred_live(pool):
    pool.put("block", b"tokens")
    gate = threading.Semaphore(300)
    failed: list[BaseException] = []
    held = []

    def run(number: int) -> None:
        try:
            pin = pool.get("block")
            assert memoryview(pin) == b"tokens"
            pool.put(f"own/{number}", str(number).encode())
            assert pool.get(f"own/{number}").read() == str(number).encode()
            time.sleep(0.02)
            held.append(pin)
        except BaseException as error:
            failed.append(error)
        finally:
            gate.release()

    threads = []
    for number in range(1000):
        gate.acquire()
        threads.append(threading.Thread(target=run, args=(number,)))
        threads[-1].start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not failed, failed[:3]
    assert len(held) == 1000 and pool.info().files == 1001
    pool.unlink("block")
    held.clear()
    until("the frames are free", lambda: pool.info().draining == 0)


def test_closing_while_others_call_ends_them_cleanly(socket):
    pool = pgmap.Pool.connect(socket)
    unexpected = []

    def work(number: int) -> None:
        try:
            for turn in range(100_000):
                pool.put(f"{number}/{turn}", b"x")
                pool.unlink(f"{number}/{turn}")
        except RuntimeError as error:
            assert "closed" in str(error)
        except BaseException as error:
            unexpected.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    pool.close()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not unexpected, unexpected
