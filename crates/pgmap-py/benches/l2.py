"""LMCache's L2 adapters side by side, by the calls of its controllers: ``python l2.py``.

Each round stores, looks up, loads and deletes new keys with every adapter, in a new order.
Printed are microseconds for each object: the median over rounds, the least, and how much that is
beside the copies of the same round. Needs LMCache. Its adapter for redis is measured where there is
a redis-server.
"""

import argparse
import contextlib
import ctypes
import mmap
import os
import random
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")

import torch
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.l2_adapters import create_l2_adapter
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.distributed.l2_adapters.dax_l2_adapter import (
    DaxDeviceConfig,
    DaxL2Adapter,
    DaxL2AdapterConfig,
)
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2Adapter, FSL2AdapterConfig
from lmcache.v1.distributed.l2_adapters.mock_l2_adapter import (
    MockL2Adapter,
    MockL2AdapterConfig,
)
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from pgmap.lmcache import PgmapL2Adapter

ARENA = 512 << 20
CASES = [(2 << 20, 64), (2 << 20, 1), (64 << 10, 64)]
LAYOUT = {0: MemoryLayoutDesc([torch.Size([1])], [torch.uint8])}
OWNER = """
import sys, pgmap
pool = pgmap.Pool.create(int(sys.argv[1]), directory=sys.argv[3] or None, populate=True)
pool.serve(sys.argv[2], busy_poll=float(sys.argv[4]))
print("ready", flush=True)
sys.stdin.read()
"""
DAX = "LMCache dax on a file"
clock = time.perf_counter


class Copies:
    """The floor: a copy into memory that is there, and back."""

    def __init__(self, memory: mmap.mmap) -> None:
        self.memory, self.at, self.next = memory, {}, 0
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        ctypes.memset(self.base, 1, len(memory))

    def store(self, keys, objs):
        # Each time to other memory, as in a pool: not to what the processor's cache has.
        for key, obj in zip(keys, objs):
            self.next = (self.next + obj.get_size()) % len(self.memory)
            self.at[key] = self.base + self.next
            ctypes.memmove(self.at[key], obj.data_ptr, obj.get_size())

    def lookup(self, keys):
        return sum(key in self.at for key in keys)

    def load(self, keys, objs):
        for key, obj in zip(keys, objs):
            ctypes.memmove(obj.data_ptr, self.at[key], obj.get_size())
        return len(keys)

    def delete(self, keys):
        self.at.clear()

    def close(self):
        pass


class Adapter:
    """An L2 adapter, as LMCache's controllers call it: submit, wait for the event, ask."""

    def __init__(self, adapter) -> None:
        self.adapter, self.polls = adapter, []
        for get in ("get_store_event_fd", "get_lookup_and_lock_event_fd", "get_load_event_fd"):
            poll, event = select.poll(), getattr(adapter, get)()
            poll.register(event, select.POLLIN)
            self.polls.append((poll, event))

    def wait(self, kind, ask):
        poll, event = self.polls[kind]
        while (answer := ask()) is None:
            if poll.poll(1000):
                os.eventfd_read(event)
        return answer

    def store(self, keys, objs):
        task = self.adapter.submit_store_task(keys, objs)
        result = self.wait(0, lambda: self.adapter.pop_completed_store_tasks().get(task))
        assert result.is_successful()

    def lookup(self, keys):
        task = self.adapter.submit_lookup_and_lock_task(keys, LAYOUT)
        return self.wait(1, lambda: self.adapter.query_lookup_and_lock_result(task)).popcount()

    def load(self, keys, objs):
        task = self.adapter.submit_load_task(keys, objs)
        loaded = self.wait(2, lambda: self.adapter.query_load_result(task)).popcount()
        self.adapter.submit_unlock(keys)
        return loaded

    def delete(self, keys):
        self.adapter.delete(keys)

    def close(self):
        self.adapter.close()


def dax(path: Path, size: int) -> DaxL2Adapter:
    with path.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, ARENA)
    device = DaxDeviceConfig(device_path=str(path), max_dax_size_gb=ARENA / (1 << 30))
    return DaxL2Adapter(DaxL2AdapterConfig(devices=[device], slot_bytes=size))


def owner(
    folder: Path, name: str, directory: str, busy_poll: float
) -> tuple[subprocess.Popen, str]:
    socket = str(folder / name)
    words = [sys.executable, "-c", OWNER, str(ARENA), socket, directory, str(busy_poll)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process, socket


def compiled(kind: str, parameters: dict) -> Callable[[int], Adapter] | None:
    """What makes one of LMCache's adapters in C++; None where it was not built."""
    config = get_l2_adapter_config_class(kind).from_dict(parameters)
    try:
        create_l2_adapter(config).close()
    except RuntimeError as error:
        print(f"skipped: LMCache {kind}: {error}", file=sys.stderr)
        return None
    return lambda _: Adapter(create_l2_adapter(config))


def redis(stack: contextlib.ExitStack) -> int | None:
    """The port on the loopback device of a server that keeps all in memory; None without redis."""
    program = shutil.which("redis-server")
    if program is None:
        print("skipped: LMCache resp: there is no redis-server", file=sys.stderr)
        return None
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    words = [program, "--bind", "127.0.0.1", "--port", str(port)]
    words += ["--save", "", "--appendonly", "no"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    stack.callback(process.wait, 10)
    stack.callback(process.terminate)
    end = clock() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return port
        except OSError:
            if clock() > end or process.poll() is not None:
                raise
            time.sleep(0.01)


def objects(arena: torch.Tensor, size: int, count: int) -> list[TensorMemoryObj]:
    shape = torch.Size([size])
    return [
        TensorMemoryObj(
            arena[at * size :][:size],
            MemoryObjMetadata(
                shape,
                torch.uint8,
                address=0,
                phy_size=size,
                ref_count=1,
                fmt=MemoryFormat.KV_2LTD,
                shapes=[shape],
                dtypes=[torch.uint8],
            ),
            parent_allocator=None,
        )
        for at in range(count)
    ]


def measure(entry, keys, sources, targets) -> dict[str, float]:
    """Microseconds of each call, for each object."""
    times = {}
    for name, call in [
        ("store", lambda: entry.store(keys, sources)),
        ("lookup", lambda: entry.lookup(keys)),
        ("load", lambda: entry.load(keys, targets)),
    ]:
        start = clock()
        answer = call()
        times[name] = (clock() - start) / len(keys) * 1e6
        assert answer in (None, len(keys)), name
    entry.delete(keys)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--busy-poll", type=float, default=0.00025, help="seconds, as for Pool.serve"
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="make an adapter for each size and round; its first call is not measured",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as shm, contextlib.ExitStack() as stack:
        base = makers(Path(shm), stack, arguments.busy_poll)
        times = measured(base, arguments.rounds, arguments.fresh)
    show(times, list(base), arguments.rounds)
    os._exit(0)


def makers(folder: Path, stack: contextlib.ExitStack, busy_poll: float) -> dict:
    """What makes each entry, for objects of a size."""
    sockets = {}
    for name, directory in [("anonymous", ""), ("directory", str(folder / "pool"))]:
        process, sockets[name] = owner(folder, name, directory, busy_poll)
        stack.callback(process.wait, 10)
        stack.callback(process.stdin.close)
    port = redis(stack)
    fs = FSL2AdapterConfig.from_dict({"base_path": str(folder / "fs")})
    base = {
        "memcpy": lambda _: Copies(mmap.mmap(-1, 64 * (2 << 20))),
        "LMCache mock": lambda _: Adapter(MockL2Adapter(MockL2AdapterConfig(1, 10000))),
        "LMCache fs": lambda _: Adapter(FSL2Adapter(fs)),
        "LMCache fs_native": compiled("fs_native", {"base_path": str(folder / "fs_native")}),
        "LMCache resp (redis)": port and compiled("resp", {"host": "127.0.0.1", "port": port}),
        "pgmap, in the process": lambda _: Adapter(PgmapL2Adapter({"size": ARENA})),
        "pgmap, another process": lambda _: Adapter(
            PgmapL2Adapter({"socket": sockets["anonymous"]})
        ),
        "pgmap, another process, in /dev/shm": lambda _: Adapter(
            PgmapL2Adapter({"socket": sockets["directory"]})
        ),
    }
    base = {name: make for name, make in base.items() if make}
    base[DAX] = lambda size: Adapter(dax(folder / f"dax{size}", size))
    return base


def measured(base: dict, rounds: int, is_fresh: bool) -> dict[tuple, list[float]]:
    """Microseconds for each object, of each round."""
    source = torch.randint(0, 255, (64 * (2 << 20),), dtype=torch.uint8)
    target = torch.zeros_like(source)
    times: dict[tuple, list[float]] = {}
    made: dict[tuple, object] = {}
    number = 0
    # One more round first: it takes frames and pages that the others use again.
    for turn in range(rounds + 1):
        for size, count in CASES:
            of_batches, of_single_objects = (3, 25) if is_fresh else (1, 9)
            nr_calls = of_batches if count > 1 else of_single_objects
            names = list(base)
            random.shuffle(names)
            for name in names:
                key = (name, size) if name == DAX else name
                if is_fresh or key not in made:
                    made[key] = base[name](size)
                for call in range(nr_calls):
                    keys = [
                        ObjectKey((number + at).to_bytes(16, "big"), "some/model", 0x01000100)
                        for at in range(count)
                    ]
                    number += count
                    target[: count * size].zero_()
                    # Nothing refers to the objects afterwards: the interpreter's collector would be
                    # at work in the calls that are measured.
                    row = measure(
                        made[key], keys, objects(source, size, count), objects(target, size, count)
                    )
                    assert torch.equal(target[: count * size], source[: count * size]), name
                    if turn and (call or not is_fresh):
                        for operation, microseconds in row.items():
                            cell = (name, operation, size, count)
                            times.setdefault(cell, []).append(microseconds)
                if is_fresh:
                    made.pop(key).close()
    return times


def show(times: dict[tuple, list[float]], names: list[str], rounds: int) -> None:
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"\nmicroseconds for each object, median (least) of {rounds} rounds; load {load}\n")
    columns = [(call, *case) for call in ("store", "load", "lookup") for case in CASES]
    heads = [f"{call} {size >> 10}K x{count}" for call, size, count in columns]
    print("| | " + " | ".join(heads) + " |\n|---" + "|---" * len(columns) + "|")
    for name in names:
        cells = []
        for column in columns:
            each, floor = times[name, *column], times["memcpy", *column]
            ratio = statistics.median(mine / least for mine, least in zip(each, floor))
            beside = f", {ratio:.2f}x" if column[0] != "lookup" else ""
            cells.append(f"{statistics.median(each):.3g} ({min(each):.3g}){beside}")
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
