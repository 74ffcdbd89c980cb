"""What eviction costs and how well it chooses: ``python eviction.py [--trace conversation.jsonl]``.

Stores per second into a pool that is full, one that is full and has water marks, and one that has
room, in turns; then the hit rates of a
pool, of exact LRU and of Belady's choice, which knows the future. A trace has a JSON object a line
with ``hash_ids``, as Mooncake's (FAST25 release) have.
"""

import argparse
import bisect
import heapq
import itertools
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path

import pgmap

BLOCK = 256 << 10
BATCH = 16
FRAME = 4096
OWNER = """
import sys, pgmap
pool = pgmap.Pool.create(int(sys.argv[1]), populate=True)
pool.serve(sys.argv[2])
print("ready", flush=True)
sys.stdin.read()
"""


class Owned:
    """A pool that another process owns."""

    def __init__(self, folder: Path, name: str, size: int) -> None:
        socket = str(folder / name)
        words = [sys.executable, "-c", OWNER, str(size), socket]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()
        self.pool = pgmap.Pool.connect(socket)

    def end(self) -> None:
        self.pool.close()
        self.process.communicate(timeout=10)


def stores(rounds: int, batch: int, blocks: int) -> None:
    """Stores per second in both pools: where there is room the names are removed between."""
    data, numbers = os.urandom(BLOCK), itertools.count()
    rates: dict[str, list[float]] = {"full": [], "water marks": [], "room": []}
    with tempfile.TemporaryDirectory() as folder:
        full = Owned(Path(folder), "full", blocks * BLOCK)
        marks = Owned(Path(folder), "marks", blocks * BLOCK)
        marks.pool.set_water_marks(2 * BATCH * BLOCK, 4 * BATCH * BLOCK)
        room = Owned(Path(folder), "room", 2 * blocks * BLOCK)

        def put(pool: pgmap.Pool, names: Sequence[str]) -> None:
            if batch == 1:
                for name in names:
                    pool.put(name, data, evictable=1)
                return
            for at in range(0, len(names), batch):
                part = names[at : at + batch]
                assert not any(pool.put_many(part, [data] * len(part), evictable=1))

        for turn in range(rounds + 1):
            for kind, owned in [("full", full), ("water marks", marks), ("room", room)]:
                # The first turn fills them, and takes frames and pages that the others use again.
                count = blocks if turn or kind == "room" else 2 * blocks
                names = [f"block/{next(numbers)}" for _ in range(count)]
                start = time.perf_counter()
                put(owned.pool, names)
                if turn:
                    rates[kind].append(count / (time.perf_counter() - start))
                if kind == "room":
                    owned.pool.unlink_many(names)
        assert full.pool.info().evicted >= rounds * blocks and room.pool.info().evicted == 0
        for owned in (full, marks, room):
            owned.end()
    size = blocks * BLOCK >> 20
    print(f"stores of {BLOCK >> 10} KiB by {batch} into a pool of {size} MiB of another process")
    for kind, each in rates.items():
        ratios = [rate / room for rate, room in zip(each, rates["room"])]
        print(
            f"  {kind:<12} {statistics.median(each):6.0f}/s [{min(each):.0f}-{max(each):.0f}], "
            f"beside room {statistics.median(ratios):.2f} [{min(ratios):.2f}-{max(ratios):.2f}]"
        )


def hits_of_pool(trace: Sequence[int], blocks: int) -> float:
    hits = 0
    # Descriptors and index have memory of their own: a block of one frame takes one frame.
    with pgmap.Pool.create(blocks * FRAME, max_files=2 * blocks + 64) as pool:
        for block in trace:
            name = f"{block}"
            if name in pool:
                pool.get(name)
                hits += 1
            else:
                pool.put(name, b"x", evictable=1)
        assert pool.info().files <= blocks
    return hits / len(trace)


def hits_of_lru(trace: Sequence[int], blocks: int) -> float:
    kept: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for block in trace:
        if block in kept:
            hits += 1
            kept.move_to_end(block)
        else:
            if len(kept) == blocks:
                kept.popitem(last=False)
            kept[block] = None
    return hits / len(trace)


def hits_of_belady(trace: Sequence[int], blocks: int) -> float:
    """Evicts what is used again last."""
    following, seen = [len(trace)] * len(trace), {}
    for at in range(len(trace) - 1, -1, -1):
        following[at] = seen.get(trace[at], len(trace) + at)
        seen[trace[at]] = at
    kept: dict[int, int] = {}
    last: list[tuple[int, int]] = []
    hits = 0
    for at, block in enumerate(trace):
        if block in kept:
            hits += 1
        elif len(kept) == blocks:
            while True:
                use, victim = heapq.heappop(last)
                if kept.get(victim) == -use:
                    del kept[victim]
                    break
        kept[block] = following[at]
        heapq.heappush(last, (-following[at], block))
    return hits / len(trace)


def zipf(length: int, blocks: int) -> list[int]:
    choose = random.Random(1)
    sums = list(itertools.accumulate(1 / (rank + 1) for rank in range(blocks)))
    return [bisect.bisect(sums, choose.random() * sums[-1]) for _ in range(length)]


def scan_then_loop(blocks: int) -> list[int]:
    """Each block once, then a part that fits again and again, disturbed by scans."""
    trace: list[int] = list(range(blocks))
    scanned = itertools.count(blocks)
    for turn in range(40):
        trace += range(blocks // 20)
        if turn % 8 == 7:
            trace += itertools.islice(scanned, blocks // 20)
    return trace


def conversation(path: Path, first: int) -> list[int]:
    requests: Iterable[str] = path.read_text().splitlines()
    return [block for line in requests for block in json.loads(line)["hash_ids"]][:first]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--blocks", type=int, default=4096, help="blocks of the full pool")
    parser.add_argument("--trace", type=Path, help="requests as JSON lines with hash_ids")
    parser.add_argument("--first", type=int, default=1 << 30, help="blocks of the trace")
    arguments = parser.parse_args()
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"pgmap {pgmap.__version__}, Python {sys.version.split()[0]}, load {load}")
    for batch in (1, BATCH):
        stores(arguments.rounds, batch, arguments.blocks)
    traces = {"Zipf": zipf(100_000, 20_000), "scan, then loop": scan_then_loop(20_000)}
    if arguments.trace:
        traces[arguments.trace.stem] = conversation(arguments.trace, arguments.first)
    for name, trace in traces.items():
        blocks = len(set(trace)) // 10
        print(
            f"{name}: {len(trace)} uses, {blocks} of {len(set(trace))} blocks fit: hit rate "
            f"pgmap {hits_of_pool(trace, blocks):.4f}, exact LRU {hits_of_lru(trace, blocks):.4f}, "
            f"Belady {hits_of_belady(trace, blocks):.4f}"
        )


if __name__ == "__main__":
    main()
