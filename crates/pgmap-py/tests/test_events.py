"""Metadata, checksums, and what becomes of files."""

import asyncio
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

import pgmap
import pgmap.aio
from conftest import BOUND, until


def test_metadata_comes_with_the_file_and_257_bytes_are_refused(pool):
    pool.put("a", b"contents", metadata=b"shape=2x4")
    assert pool.metadata("a") == b"shape=2x4"
    pool.put("plain", b"")
    assert pool.metadata("plain") == b""
    pool.put_many(["b", "c"], [b"1", b"2"], metadatas=[b"first", b""])
    assert [pool.metadata(name) for name in "bc"] == [b"first", b""]
    with pool.writer("w", 4, metadata=bytes(range(256))) as writer:
        writer.write(b"data")
    assert pool.metadata("w") == bytes(range(256))
    with pytest.raises(pgmap.Error, match="257"):
        pool.put("long", b"", metadata=bytes(257))
    with pytest.raises(ValueError, match="2 names and 1 metadatas"):
        pool.put_many(["x", "y"], [b"", b""], metadatas=[b""])
    with pytest.raises(pgmap.NotFound):
        pool.metadata("nothing")


def test_a_checksum_tells_contents_that_changed(tmp_path):
    place = tmp_path / "pool"
    with pgmap.Pool.create("16MiB", directory=place) as pool:
        pool.put("checked", b"k" * 5000, checksum=True)
        pool.put("unchecked", b"k" * 5000)
        assert (pool.verify("checked"), pool.verify("unchecked")) == (True, None)
        # Somebody writes past the pool, as a broken device would.
        [data] = [path for path in place.iterdir() if path.stat().st_size >= 16 << 20]
        with open(data, "r+b") as file:
            at = file.read().index(b"k" * 5000)
            file.seek(at + 10)
            file.write(b"!")
        assert pool.verify("checked") is False


def test_events_come_in_order_and_only_those_asked_for(pool):
    with pool.subscribe("kv/") as everything, pool.subscribe(only=["removed"]) as removals:
        pool.put("kv/1", b"12345")
        pool.put("other", b"")
        pin = pool.get("kv/1")
        pool.unlink("kv/1")
        event = everything.next(BOUND)
        assert (event.change, event.name, event.nbytes) == ("created", "kv/1", 5)
        assert (event.sequence, event.missed) == (1, 0)
        assert everything.next(BOUND).change == "removed"
        assert everything.next(0.05) is None and everything.try_next() is None
        pin.release()
        assert everything.next(BOUND).change == "drained"
        assert [removals.next(BOUND).name] == ["kv/1"]
    with pytest.raises(RuntimeError, match="closed"):
        everything.next(0)
    with pytest.raises(ValueError, match="created, removed"):
        pool.subscribe(only=["renamed"])


def test_a_slow_reader_hears_how_much_it_lost(pool):
    with pool.subscribe() as events:
        for number in range(3000):
            pool.put("x", b"", replace=number > 0)
        got = [events.next(BOUND)]
        while (event := events.next(0.2)) is not None:
            got.append(event)
    # A put in place of another is a removal and a creation, and an empty file is drained at once.
    assert got[-1].sequence == len(got) + sum(event.missed for event in got) >= 5999
    assert sum(event.missed for event in got) > 0


def test_the_descriptor_is_for_select(pool):
    with pool.subscribe() as events:
        assert select.select([events], [], [], 0.01)[0] == []
        pool.put("a", b"")
        assert select.select([events], [], [], BOUND)[0] == [events]
        assert events.try_next().name == "a"


def test_asyncio_waits_without_a_thread(pool, socket, start):
    async def follow() -> list[str]:
        with pool.subscribe("kv/") as subscription:
            writer = start(
                "import pgmap, sys; pool = pgmap.Pool.connect(sys.argv[1]);"
                "[pool.put(f'kv/{n}', b'') for n in range(300)]; print('done')",
                socket,
            )
            names = []
            async with asyncio.timeout(BOUND):
                async for event in subscription:
                    names.append(event.name)
                    if len(names) == 300:
                        break
            assert writer.line() == "done"
            return names

    before = threading.active_count()
    assert asyncio.run(follow()) == [f"kv/{n}" for n in range(300)]
    assert threading.active_count() == before


def test_waiting_for_a_file(pool):
    assert pool.wait_for("late", 0.05) is False

    def put() -> None:
        time.sleep(0.1)
        pool.put("late", b"")

    for wait in (
        lambda: pool.wait_for("late", BOUND),
        lambda: asyncio.run(pgmap.aio.wait_for(pool, "late", BOUND)),
    ):
        other = threading.Thread(target=put)
        other.start()
        assert wait() is True
        other.join()
        assert wait() is True
        pool.unlink("late")
    assert asyncio.run(pgmap.aio.wait_for(pool, "late", 0.05)) is False


def test_a_subscription_ends_with_its_owner(tmp_path, start):
    path = str(tmp_path / "sock")
    owner = start(
        "import pgmap, sys; pool = pgmap.Pool.create('16MiB'); pool.serve(sys.argv[1]);"
        "print('serves', flush=True); sys.stdin.read()",
        path,
    )
    assert owner.line() == "serves"
    pool = pgmap.Pool.connect(path, deadline=1)
    events = pool.subscribe()
    owner.kill()
    with pytest.raises(pgmap.OwnerGone):
        events.next(BOUND)
    with pytest.raises(pgmap.OwnerGone):
        asyncio.run(anext(aiter(pool_events := events)))
    del pool_events


def test_ctrl_c_ends_a_wait(socket, start):
    waiting = start(
        "import pgmap, sys\n"
        "pool = pgmap.Pool.connect(sys.argv[1])\n"
        "print('waits', flush=True)\n"
        "try:\n    next(pool.subscribe())\nexcept KeyboardInterrupt:\n    print('interrupted', flush=True)",
        socket,
    )
    assert waiting.line() == "waits"
    time.sleep(0.1)
    waiting.process.send_signal(signal.SIGINT)
    assert waiting.line() == "interrupted"


COMMAND = [sys.executable, "-m", "pgmap"]


def run(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=BOUND)


def test_the_command_is_the_one_of_the_shell(pool, socket):
    pool.put("from/python", b"tokens")
    listed = run("--socket", socket, "ls", "--json")
    assert listed.returncode == 0 and "from/python" in listed.stdout
    missing = run("--socket", socket, "stat", "nothing")
    assert missing.returncode != 0 and "nothing" in missing.stderr
    assert run("--version").stdout.split() == ["pgmap", pgmap.__version__]
    assert run("frobnicate").returncode == 2


def test_the_command_starts_its_own_processes_and_ends_on_ctrl_c(tmp_path):
    played = run("demo", "--seconds", "2", "--json")
    assert played.returncode == 0, played.stderr
    path = str(tmp_path / "sock")
    words = ["--socket", path, "serve", "--pool", str(tmp_path / "pool"), "--size", "16M"]
    serving = subprocess.Popen([*COMMAND, *words])
    try:
        until("it serves", lambda: os.path.exists(path))
        serving.send_signal(signal.SIGINT)
        serving.wait(BOUND)
    finally:
        serving.kill()
    assert not os.path.exists(path)


def test_names_of_events_name_the_files(pool):
    with pool.subscribe(b"\xff") as events:
        pool.put(b"\xff\xfe", b"odd")
        event = next(itertools.islice(events, 1))
        assert pool.get(event.name).read() == b"odd"


def test_what_nobody_holds_is_evicted_when_a_put_needs_room():
    with pgmap.Pool.create("16MiB") as pool, pool.subscribe(only=["evicted"]) as evicted:
        block = bytes(1 << 20)
        for number in range(12):
            pool.put(f"block/{number}", block, evictable=1)
        pool.put("kept", block)
        held = pool.get("block/0")
        assert pool.get("block/1").nbytes == len(block), "used, so that it goes late"
        assert pool.info().evictable == 12 << 20
        raised = pool.put_many([f"new/{n}" for n in range(8)], [block] * 8, evictable=1)
        assert raised == [None] * 8
        gone = [event.name for event in iter(lambda: evicted.next(0.5), None)]
        assert gone and gone == [f"block/{n}" for n in range(2, 2 + len(gone))]
        assert pool.info().evicted == len(gone)
        assert "kept" in pool and bytes(memoryview(held)) == block
        with pytest.raises(pgmap.NoSpace):
            pool.put("more", bytes(15 << 20))
