"""What pgmap costs from Python, beside a memory copy: ``python figures.py [--rounds 9]``.

Rounds are interleaved: each measures every row once. Printed are medians over rounds, and the least
and greatest. The pool of the rows "other process" is owned by another process.
"""

import argparse
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pgmap

OWNER = """
import sys, pgmap
pool = pgmap.Pool.create("512MiB", populate=True)
pool.serve(sys.argv[1])
print("ready", flush=True)
sys.stdin.read()
"""
BLOCK = 2 << 20
BATCH = 64
clock = time.perf_counter


def per_turn(turns: int, act: Callable[[], object]) -> float:
    """Microseconds that `act` takes, over so many turns."""
    act()
    start = clock()
    for _ in range(turns):
        act()
    return (clock() - start) / turns * 1e6


def rows(pool: pgmap.Pool) -> dict[str, Callable[[], float]]:
    names = [f"model/{number:032x}@0" for number in range(BATCH)]
    pool.put_many(names, [b"x" * 4096] * BATCH)
    name = names[7]
    source, target = (ctypes.create_string_buffer(BLOCK) for _ in range(2))
    source.raw = os.urandom(BLOCK)
    pool.put("block", source)

    def view() -> None:
        memoryview(pool.get(name))

    def store() -> float:
        # The first turn takes frames, and pages of this process, that the next ones use again.
        times = []
        for turn in range(9):
            start = clock()
            pool.put("stored", source)
            times.append((clock() - start) * 1e6)
            pool.unlink("stored")
        return statistics.median(times[1:])

    def load() -> float:
        return per_turn(8, lambda: pool.read_many(["block"], [target]))

    return {
        "nothing (the loop itself)": lambda: per_turn(20_000, lambda: None),
        "exists": lambda: per_turn(20_000, lambda: pool.exists(name)),
        "get + drop": lambda: per_turn(20_000, lambda: pool.get(name)),
        "get + memoryview + drop": lambda: per_turn(20_000, view),
        f"exists_prefix of {BATCH}": lambda: per_turn(2000, lambda: pool.exists_prefix(names)),
        f"get_many of {BATCH} + drop, each": lambda: (
            per_turn(1000, lambda: pool.get_many(names)) / BATCH
        ),
        "copy 2 MiB (memmove)": lambda: per_turn(
            8, lambda: ctypes.memmove(target, source, BLOCK)
        ),
        "store 2 MiB, other process": store,
        "load 2 MiB, other process": load,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "s")
        pipe = subprocess.PIPE
        owner = subprocess.Popen(
            [sys.executable, "-c", OWNER, socket], stdin=pipe, stdout=pipe, text=True
        )
        assert owner.stdout is not None and owner.stdin is not None
        owner.stdout.readline()
        pool = pgmap.Pool.connect(socket)
        all_rows = rows(pool)
        times: dict[str, list[float]] = {row: [] for row in all_rows}
        for _ in range(rounds):
            for row, measure in all_rows.items():
                times[row].append(measure())
        pool.close()
        owner.stdin.close()
        owner.wait(10)
    load = ", ".join(f"{part:.1f}" for part in os.getloadavg())
    print(f"pgmap {pgmap.__version__}, Python {sys.version.split()[0]}, load {load}")
    print(f"microseconds: median of {rounds} rounds [least - greatest]")
    for row, each in times.items():
        print(f"{row:<34} {statistics.median(each):>9.3f}  [{min(each):.3f} - {max(each):.3f}]")


if __name__ == "__main__":
    main()
