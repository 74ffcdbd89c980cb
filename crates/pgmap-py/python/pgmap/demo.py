"""Two processes on one pool, one of which is killed: ``python -m pgmap.demo``."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pgmap

BLOCK = 2 << 20


def read(socket: str) -> None:
    """The other process: pins a block and keeps it until it is killed."""
    pool = pgmap.Pool.connect(socket, label="reader")
    view = memoryview(pool.get("block"))
    print(bytes(view[:6]).decode(), flush=True)
    time.sleep(60)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        socket = str(Path(folder) / "pool.sock")
        pool = pgmap.Pool.create(size="64MiB")
        pool.serve(socket)
        pool.put("block", b"tokens" + bytes(BLOCK - 6))
        print(f"a pool of {pool.info().size >> 20} MiB, a block of {BLOCK >> 20} MiB in it")

        command = [sys.executable, "-m", "pgmap.demo", socket]
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert reader.stdout is not None
        print(f"process {reader.pid} pins it, without a copy, and reads: {reader.stdout.readline()!r}")

        pool.unlink("block")
        print(f"unlinked: the name is gone, {pool.info().draining >> 20} MiB wait for the reader")

        killed = time.perf_counter()
        reader.kill()
        while pool.info().draining:
            if time.perf_counter() - killed > 10:
                sys.exit("the frames did not come back within 10 s")
        elapsed = (time.perf_counter() - killed) * 1e3
        print(f"reader killed (SIGKILL): its frames are free {elapsed:.1f} ms later")
        reader.wait()

        start = time.perf_counter()
        pool.put("block", b"after!" + bytes(BLOCK - 6))
        print(f"and hold another block {(time.perf_counter() - start) * 1e6:.0f} us after that")
        pool.close()


if __name__ == "__main__":
    if len(sys.argv) == 2:
        read(sys.argv[1])
    else:
        main()
