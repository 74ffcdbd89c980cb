"""Engine processes with SGLang's own controller over one served pool, some of them killed at work.

``python -m pytest -s sglang_engines.py`` prints what two did of which one is killed.
PGMAP_ENGINES_SECONDS (15) says how long that runs.
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
pytest.importorskip("sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller")

from engine_process import EngineProcess  # noqa: E402
from sglang.srt.mem_cache.utils import get_storage_hash_str  # noqa: E402
from sglang_controller import PAGE, PAGES, Engine, fill, nr_wrong, tokens_of  # noqa: E402

import pgmap  # noqa: E402

SECONDS = float(os.environ.get("PGMAP_ENGINES_SECONDS", "15"))
# A new engine is forked from a process that has imported everything, and not from this one.
here = str(Path(__file__).parent)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([__name__])

# Sequences of a few pages of 4 MiB each, of which half have room.
LARGE = dict(heads=32, dim=128, layers=16)
SEQUENCES, LENGTH, RANGE = 20, 4, 2 << 20
POOL_RANGES = SEQUENCES * LENGTH
WORDS = torch.arange(RANGE // 8, dtype=torch.int64) * 0x9E3779B97F4A7C1
IDLE, STORING, FETCHING = range(3)
STATE, STORED, FETCHED, OF_OTHERS, WRONG, FAILED, NR_COUNTS = range(7)


def words_of(host, at):
    return [
        buffer[at : at + PAGE].view(torch.int64).flatten()
        for buffer in (host.k_buffer, host.v_buffer)
    ]


def writer_of(words, number):
    """Who wrote a range; None if any byte of it is not what that engine wrote for this page."""
    tag = int(words[0])
    is_right = tag >> 8 == number and bool(torch.equal(words - tag, WORDS))
    return tag & 0xFF if is_right else None


def number_of(sequence, nth, half):
    return (sequence * LENGTH + nth) * 2 + half


def store_sequence(engine, sequence, me):
    """How many pages SGLang says are stored."""
    indices = engine.host.alloc(LENGTH * PAGE)
    for nth, at in enumerate(indices.tolist()[::PAGE]):
        for half, words in enumerate(words_of(engine.host, at)):
            words.copy_(WORDS + (number_of(sequence, nth, half) << 8 | me))
    nr_stored = engine.store(tokens_of(sequence, LENGTH), indices)
    engine.host.free(indices)
    return nr_stored


def fetch_sequence(engine, sequence, me, counts):
    indices, nr_pages = engine.prefetch(tokens_of(sequence, LENGTH))
    for nth, at in enumerate(indices.tolist()[: nr_pages * PAGE : PAGE]):
        writers = [
            writer_of(words, number_of(sequence, nth, half))
            for half, words in enumerate(words_of(engine.host, at))
        ]
        counts[FETCHED] += 1
        counts[WRONG] += None in writers
        counts[OF_OTHERS] += any(writer not in (None, me) for writer in writers)
    engine.host.free(indices)


def engine_process(socket, me, seed, counts, stop):
    """Stores and fetches until it is stopped or killed."""
    engine = Engine(socket, pages=2 * LENGTH, size=LARGE)
    choose = random.Random(seed)
    while not stop.is_set():
        sequence = choose.randrange(SEQUENCES)
        try:
            if choose.random() < 0.5:
                counts[STATE] = STORING
                counts[STORED] += store_sequence(engine, sequence, me)
            else:
                counts[STATE] = FETCHING
                fetch_sequence(engine, sequence, me, counts)
        except Exception as error:
            print(f"engine {me}: {error!r}", file=sys.stderr)
            counts[FAILED] += 1
        counts[STATE] = IDLE
    engine.close()


def started(*arguments, counts):
    return EngineProcess(context, engine_process, arguments, counts, bound=60)


class Owner:
    def __init__(self, socket, directory):
        self.socket, self.directory = socket, directory
        self.start()

    def start(self):
        serve = [sys.executable, "-m", "pgmap", "serve", "--socket", self.socket]
        serve += ["--size", str(POOL_RANGES * RANGE), "--pool", self.directory]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(serve, **quiet)
        # It prints a line when clients can attach.
        assert self.process.stdout.readline(), "the owner did not start"

    def kill(self):
        self.process.kill()
        self.process.wait(10)


@pytest.fixture
def owner(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        owner = Owner(str(tmp_path / "s"), f"{directory}/pool")
        yield owner
        owner.kill()


def store_and_be_killed(socket):
    engine = Engine(socket, pages=2 * LENGTH, size=LARGE)
    for sequence in range(3):
        assert store_sequence(engine, sequence, 1) == LENGTH
    os.kill(os.getpid(), signal.SIGKILL)


def fetch_after_that(socket, counts):
    engine = Engine(socket, pages=2 * LENGTH, size=LARGE)
    for sequence in range(3):
        fetch_sequence(engine, sequence, 2, counts)
    engine.close()


def test_a_new_engine_finds_all_that_a_killed_one_stored(owner):
    counts = context.RawArray("q", NR_COUNTS)
    for work, arguments, code in [
        (store_and_be_killed, (owner.socket,), -signal.SIGKILL),
        (fetch_after_that, (owner.socket, counts), 0),
    ]:
        process = context.Process(target=work, args=arguments)
        process.start()
        process.join(120)
        assert process.exitcode == code, work
    assert counts[FETCHED] == counts[OF_OTHERS] == 3 * LENGTH and counts[WRONG] == 0


def rank_process(socket, kind, rank, meeting, counts):
    """A tensor rank: it stores, and fetches as much as each rank finds."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    group, ranks = torch.distributed.group.WORLD, dict(tp_rank=rank, tp_size=2)
    engine = Engine(socket, kind, ranks=ranks, tp_group=group)
    tokens, first = tokens_of(1), 0 if kind == "mla" else rank * PAGES
    indices = engine.host.alloc(PAGES * PAGE)
    fill(engine.host, indices, first)
    counts[STORED] = engine.store(tokens, indices)
    engine.host.free(indices)
    torch.distributed.barrier()
    found, nr_pages = engine.prefetch(tokens)
    counts[FETCHED] = nr_pages
    counts[WRONG] = nr_wrong(engine.host, found, nr_pages, first)
    engine.host.free(found)
    torch.distributed.barrier()
    if rank == 1:
        pool = pgmap.Pool.connect(socket)
        gone = get_storage_hash_str(tokens, None, page_size=PAGE)[100]
        names = [file.name for file in pool.list("sglang/") if gone in file.name]
        pool.unlink_many([name for name in names if kind == "mla" or "@tp1.2@" in name])
    torch.distributed.barrier()
    found, nr_pages = engine.prefetch(tokens)
    counts[FETCHED] += nr_pages
    counts[WRONG] += nr_wrong(engine.host, found, nr_pages, first)
    engine.close()


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_tensor_ranks_fetch_as_much_as_each_of_them_finds(owner, tmp_path, kind):
    both = [context.RawArray("q", NR_COUNTS) for _ in range(2)]
    processes = [
        context.Process(
            target=rank_process, args=(owner.socket, kind, rank, str(tmp_path / "meeting"), counts)
        )
        for rank, counts in enumerate(both)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        process.kill()
        assert process.exitcode == 0
    assert [counts[STORED] for counts in both] == [PAGES, 0 if kind == "mla" else PAGES]
    assert [counts[FETCHED] for counts in both] == [PAGES + 100] * 2
    assert [counts[WRONG] for counts in both] == [0, 0]


def test_an_engine_goes_on_without_the_owner(owner):
    engine = Engine(owner.socket, pages=4 * LENGTH, size=LARGE)
    counts = [0] * NR_COUNTS
    assert store_sequence(engine, 0, 1) == LENGTH
    owner.kill()
    # A fetch needs no owner. A store is none, and SGLang computes those pages as if never stored.
    fetch_sequence(engine, 0, 2, counts)
    assert store_sequence(engine, 1, 1) == 0
    owner.start()
    assert store_sequence(engine, 1, 1) == LENGTH
    fetch_sequence(engine, 0, 2, counts)
    fetch_sequence(engine, 1, 2, counts)
    assert counts[FETCHED] == counts[OF_OTHERS] == 3 * LENGTH and counts[WRONG] == 0
    engine.close()


def test_two_engines_share_a_pool_while_one_is_killed(owner):
    pool = pgmap.Pool.connect(owner.socket, label="test")
    seed = random.getrandbits(32)
    choose, waits, kills = random.Random(seed), [], {STORING: 0, FETCHING: 0}
    both = [context.RawArray("q", NR_COUNTS) for _ in range(2)]
    steady = started(owner.socket, 1, seed, counts=both[0])
    while not both[0][STORED]:
        time.sleep(0.01)
        assert steady.process.is_alive()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        victim = started(owner.socket, 2, choose.getrandbits(32), counts=both[1])
        state = min(kills, key=kills.get)
        kills[state] += victim.kill_while(state, choose.uniform(0, 0.03))
        both[1][STATE] = IDLE
        start = time.monotonic()
        # This process, the steady engine, and nobody else.
        while pool.info().clients > 2 and time.monotonic() < start + 5:
            time.sleep(0.001)
        waits.append(time.monotonic() - start)
    steady.end()
    sums = [sum(column) for column in zip(*both)]
    info = pool.info()
    print(
        f"\nseed {seed}: {kills[STORING]} kills of an engine that stored, {kills[FETCHING]} of one "
        f"that fetched; {sums[STORED]} pages stored, {sums[FETCHED]} fetched, {sums[OF_OTHERS]} of "
        f"them stored by the other, {sums[WRONG]} wrong, {sums[FAILED]} failed; {info.evicted} "
        f"ranges evicted; the killed gone after at most {max(waits):.3f} s"
    )
    assert min(kills.values()) > 0 and sums[WRONG] == 0 and sums[FAILED] == 0
    assert sums[OF_OTHERS] > 0, "what one stores the other fetches"
    assert info.evicted > 0 and max(waits) < 5
    assert info.reserved == info.draining == 0 and info.live == info.files * RANGE
    assert info.free + info.live == info.size, "no frame is lost"
    numbers = {}
    for sequence in range(SEQUENCES):
        hashes = get_storage_hash_str(tokens_of(sequence, LENGTH), None, page_size=PAGE)
        for nth, one in enumerate(hashes):
            for half in range(2):
                numbers[f"{one}.{half}"] = number_of(sequence, nth, half)
    for file in pool.list("sglang/"):
        words = torch.frombuffer(bytearray(pool.get(file.name).read()), dtype=torch.int64)
        assert writer_of(words, numbers[file.name.rsplit("@", 1)[1]]) is not None, file.name
    pool.close()
