"""Two engine processes with LMCache's own StorageManager over one pool, one of them killed at work.

``python -m pytest -s lmcache_engines.py`` prints what was done, the same for LMCache's file
adapter, and what comes of the time-outs of LMCache's own locks. PGMAP_ENGINES_SECONDS (15) says how
long each of the first two runs.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1.distributed.storage_manager")

from engine_process import EngineProcess  # noqa: E402
from lmcache.v1.distributed.api import (  # noqa: E402
    GroupedObjectKeys,
    MemoryLayoutDesc,
    ObjectKey,
    PrefetchTaskSpec,
)
from lmcache.v1.distributed.config import (  # noqa: E402
    EvictionConfig,
    L1ManagerConfig,
    L1MemoryManagerConfig,
    StorageManagerConfig,
)
from lmcache.v1.distributed.l2_adapters.config import L2AdaptersConfig  # noqa: E402
from lmcache.v1.distributed.l2_adapters.fs_l2_adapter import FSL2AdapterConfig  # noqa: E402
from lmcache.v1.distributed.l2_adapters.plugin_l2_adapter import PluginL2AdapterConfig  # noqa: E402
from lmcache.v1.distributed.storage_manager import StorageManager  # noqa: E402

import pgmap  # noqa: E402
from pgmap.lmcache import names_of  # noqa: E402

SECONDS = float(os.environ.get("PGMAP_ENGINES_SECONDS", "15"))
BLOCK = 1 << 20
POOL_BLOCKS, KEYS, BATCH, RESTART = 40, 80, 8, 32
LAYOUT = MemoryLayoutDesc(shapes=[torch.Size([2, BLOCK // 2])], dtypes=[torch.uint8])
WORDS = torch.arange(BLOCK // 8, dtype=torch.int64) * 0x9E3779B97F4A7C1
IDLE, STORING, LOADING = range(3)
STATE, STORED, LOADED, OF_OTHERS, WRONG, FAILED, NR_COUNTS = range(7)

# Several threads for a copy of 1 MiB wait for each other on a machine that is busy.
torch.set_num_threads(1)
# A new engine is forked from a process that has imported everything, and not from this one.
here = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])


def key(number):
    return ObjectKey(b"%08d" % number, "some/model", 0)


def words_of(obj):
    return obj.raw_tensor.flatten()[:BLOCK].view(torch.int64)


def writer_of(words, number):
    """Who wrote a block; None if any byte of it is not what that engine wrote for this key."""
    tag = int(words[0])
    is_right = tag >> 8 == number and bool(torch.equal(words - tag, WORDS))
    return tag & 0xFF if is_right else None


def manager(adapter, blocks=2 * BATCH):
    memory = L1MemoryManagerConfig((blocks + 2) * BLOCK, use_lazy=False, shm_name="")
    return StorageManager(
        StorageManagerConfig(
            l1_manager_config=L1ManagerConfig(memory),
            eviction_config=EvictionConfig("noop"),
            l2_adapter_config=L2AdaptersConfig([adapter]),
            store_policy="skip_l1",
        )
    )


def adapter_of(kind, place):
    if kind == "pgmap":
        parameters = {"socket": place, "evict": "pool"}
        return PluginL2AdapterConfig("pgmap.lmcache", "PgmapL2Adapter", parameters)
    return FSL2AdapterConfig.from_dict({"base_path": place})


def wait_until_stored(storage):
    end = time.monotonic() + 10
    while storage.report_status()["l1_manager"]["total_object_count"] and time.monotonic() < end:
        time.sleep(0.0005)


def store(storage, numbers, me):
    keys = [key(number) for number in numbers]
    reserved = storage.reserve_write(keys, LAYOUT)
    for number, one in zip(numbers, keys):
        if one in reserved:
            words_of(reserved[one]).copy_(WORDS + (number << 8 | me))
    storage.finish_write(list(reserved))
    count = len(reserved)
    del reserved
    wait_until_stored(storage)
    return count


def load(storage, numbers, me, counts):
    keys = [key(number) for number in numbers]
    task = storage.submit_prefetch_task(PrefetchTaskSpec([GroupedObjectKeys(keys, 0, LAYOUT)]))
    storage.wait_prefetch_status(task, timeout=10.0)
    status = storage.query_prefetch_status(task)
    hits = status.l2_hit_cells[0].count_leading_ones() if status else 0
    if not hits:
        return
    with storage.read_prefetched_results(keys[:hits]) as objs:
        for number, obj in zip(numbers, objs or []):
            writer = writer_of(words_of(obj), number)
            counts[LOADED] += 1
            counts[WRONG] += writer is None
            counts[OF_OTHERS] += writer not in (None, me)
    storage.finish_read_prefetched(keys[:hits])


def engine(kind, place, me, seed, counts, stop):
    """Stores and loads until it is stopped or killed."""
    storage = manager(adapter_of(kind, place))
    choose = random.Random(seed)
    while not stop.is_set():
        # What is loaded is a prefix: those that are asked for together are stored together.
        first = choose.randrange(KEYS // BATCH) * BATCH
        numbers = range(first, first + BATCH)
        try:
            if choose.random() < 0.5:
                counts[STATE] = STORING
                counts[STORED] += store(storage, numbers, me)
            else:
                counts[STATE] = LOADING
                load(storage, numbers, me, counts)
        except Exception as error:
            print(f"engine {me}: {error!r}", file=sys.stderr)
            counts[FAILED] += 1
        counts[STATE] = IDLE
    storage.close()


def store_and_be_killed(place):
    storage = manager(adapter_of("pgmap", place), RESTART)
    store(storage, range(RESTART), 1)
    os.kill(os.getpid(), signal.SIGKILL)


def load_after_that(place, counts):
    storage = manager(adapter_of("pgmap", place), RESTART)
    load(storage, range(RESTART), 2, counts)
    storage.close()


def started(*arguments, counts):
    return EngineProcess(context, engine, arguments, counts, bound=30)


def run(kind, place, seed, killed=lambda: None):
    """Two engines for a while; kills of the one by what it did, and the counts of both."""
    choose = random.Random(seed)
    both = [context.RawArray("q", NR_COUNTS) for _ in range(2)]
    steady = started(kind, place, 1, seed, counts=both[0])
    kills = {STORING: 0, LOADING: 0}
    while not both[0][STORED]:
        time.sleep(0.01)
        assert steady.process.is_alive()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        victim = started(kind, place, 2, choose.getrandbits(32), counts=both[1])
        state = min(kills, key=kills.get)
        kills[state] += victim.kill_while(state, choose.uniform(0, 0.004))
        both[1][STATE] = IDLE
        killed()
    steady.end()
    sums = [sum(column) for column in zip(*both)]
    print(
        f"\n{kind}: seed {seed}, {kills[STORING]} kills of an engine that stored and "
        f"{kills[LOADING]} of one that loaded; {sums[STORED]} blocks stored, "
        f"{sums[LOADED]} loaded, {sums[OF_OTHERS]} of them stored by the other, {sums[WRONG]} wrong, {sums[FAILED]} failed"
    )
    return kills, sums


@pytest.fixture
def owner(tmp_path):
    socket = str(tmp_path / "s")
    size = str(POOL_BLOCKS * BLOCK)
    serve = [sys.executable, "-m", "pgmap", "serve", "--size", size, "--socket", socket]
    with tempfile.TemporaryDirectory(dir="/dev/shm") as pool:
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        process = subprocess.Popen([*serve, "--pool", f"{pool}/pool"], **quiet)
        # It prints a line when clients can attach.
        assert process.stdout.readline(), "the owner did not start"
        yield socket
        process.terminate()
        process.wait(10)


def test_a_new_engine_finds_all_that_a_killed_one_stored(owner):
    counts = context.RawArray("q", NR_COUNTS)
    for work, arguments, code in [
        (store_and_be_killed, (owner,), -signal.SIGKILL),
        (load_after_that, (owner, counts), 0),
    ]:
        process = context.Process(target=work, args=arguments)
        process.start()
        process.join(60)
        assert process.exitcode == code, work
    assert counts[LOADED] == counts[OF_OTHERS] == RESTART and counts[WRONG] == 0


def test_two_engines_share_a_pool_while_one_is_killed(owner):
    pool = pgmap.Pool.connect(owner, label="test")
    waits = []

    def nothing_is_left_of_it():
        start = time.monotonic()
        # This process, the steady engine, and nobody else.
        while pool.info().clients > 2 and time.monotonic() < start + 5:
            time.sleep(0.001)
        waits.append(time.monotonic() - start)

    kills, sums = run("pgmap", owner, random.getrandbits(32), nothing_is_left_of_it)
    assert min(kills.values()) > 0 and sums[WRONG] == 0 and sums[FAILED] == 0
    assert sums[OF_OTHERS] > 0, "what one stores the other loads"
    info = pool.info()
    print(f"pgmap: {info.evicted} evicted; the killed gone after at most {max(waits):.3f} s")
    assert info.evicted > 0 and max(waits) < 5
    assert info.reserved == info.draining == 0 and info.live == info.files * BLOCK
    assert info.free + info.live == info.size, "no frame is lost"
    for number in range(KEYS):
        [name] = names_of([key(number)])
        if name in pool:
            block = bytearray(pool.get(name).read())
            words = torch.frombuffer(block, dtype=torch.int64)
            assert writer_of(words, number) is not None, number
    pool.close()


def test_the_same_with_lmcaches_file_adapter_for_comparison(tmp_path):
    kills, sums = run("fs", str(tmp_path), random.getrandbits(32))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    parts = [path for path in files if path.suffix != ".data"]
    nbytes = sum(path.stat().st_blocks * 512 for path in files)
    print(
        f"fs: {nbytes >> 20} MiB in files, of which {len(parts)} are parts that the killed left: "
        "nothing is evicted, and nothing removes those"
    )
    assert min(kills.values()) > 0 and sums[LOADED] > 0


def server_alone(read_ttl, write_ttl):
    """LMCache without us: objects in its own memory, locked for so many seconds."""
    memory = L1MemoryManagerConfig((BATCH + 2) * BLOCK, use_lazy=False, shm_name="")
    locks = {"read_ttl_seconds": read_ttl, "write_ttl_seconds": write_ttl}
    return StorageManager(
        StorageManagerConfig(
            l1_manager_config=L1ManagerConfig(memory, **locks),
            eviction_config=EvictionConfig("LRU", trigger_watermark=0.5, eviction_ratio=0.8),
        )
    )


def put(storage, numbers):
    reserved = storage.reserve_write([key(number) for number in numbers], LAYOUT)
    for number in numbers:
        if key(number) in reserved:
            words_of(reserved[key(number)]).copy_(WORDS + (number << 8))
    storage.finish_write(list(reserved))
    return len(reserved)


def seconds_until(happened, most):
    start = time.monotonic()
    while not happened():
        if time.monotonic() > start + most:
            return f"not within {most} s"
        time.sleep(0.1)
    return f"after {time.monotonic() - start:.1f} s"


def test_the_same_with_the_time_outs_of_lmcaches_locks_for_comparison():
    storage = server_alone(read_ttl=2, write_ttl=600)
    assert put(storage, range(4)) == 4
    keys = [key(number) for number in range(4)]
    task = storage.submit_prefetch_task(PrefetchTaskSpec([GroupedObjectKeys(keys, 0, LAYOUT)]))
    storage.wait_prefetch_status(task, timeout=10.0)
    storage.query_prefetch_status(task)
    with storage.read_prefetched_results(keys) as objs:
        read = [words_of(obj) for obj in objs]
        assert [writer_of(words, number) for number, words in enumerate(read)] == [0] * 4
        fresh = iter(range(100, 100_000))

        def changed():
            put(storage, [next(fresh) for _ in range(3)])
            return any(writer_of(words, number) is None for number, words in enumerate(read))

        had_changed = seconds_until(changed, 10)
        print(f"\nLMCache, read locks of 2 s: bytes changed under a reader {had_changed}")
    storage.close()
    storage = server_alone(read_ttl=300, write_ttl=4)
    # What a writer leaves that is killed before it has finished.
    left = storage.reserve_write([key(number) for number in range(BATCH + 2)], LAYOUT)
    assert len(left) == BATCH + 2
    had_room = seconds_until(lambda: put(storage, range(200, 204)) == 4, 15)
    print(f"LMCache, write locks of 4 s: a dead writer's memory was free {had_room}")
    storage.close()
