"""pgmap's storage plugin: what LMCache's tests ask of a backend, and what pinned memory has."""

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1.storage_backend.abstract_backend")

from lmcache.utils import CacheEngineKey  # noqa: E402
from lmcache.v1.config import LMCacheEngineConfig  # noqa: E402
from lmcache.v1.memory_allocators.ad_hoc_memory_allocator import AdHocMemoryAllocator  # noqa: E402
from lmcache.v1.memory_management import MemoryFormat  # noqa: E402
from lmcache.v1.metadata import LMCacheMetadata  # noqa: E402
from lmcache.v1.storage_backend import CreateStorageBackends  # noqa: E402
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend  # noqa: E402

import pgmap  # noqa: E402
from pgmap.lmcache_storage import PgmapStorageBackend, encode, name_of  # noqa: E402

CHUNK = torch.Size([2, 256, 8])
CHUNK_BYTES = 2 * 256 * 8 * 2


def config(**extra):
    made = LMCacheEngineConfig.from_defaults(
        chunk_size=256, local_cpu=False, max_local_cpu_size=0.01, lmcache_instance_id="pgmap"
    )
    made.storage_plugins = ["pgmap"]
    made.extra_config = {
        "storage_plugin.pgmap.module_path": "pgmap.lmcache_storage",
        "storage_plugin.pgmap.class_name": "PgmapStorageBackend",
    } | {f"pgmap.{name}": value for name, value in extra.items()}
    return made


def engine(world_size=1, worker_id=0):
    return LMCacheMetadata(
        model_name="some/model",
        world_size=world_size,
        local_world_size=world_size,
        worker_id=worker_id,
        local_worker_id=worker_id,
        kv_dtype=torch.bfloat16,
        kv_shape=(2, 2, 256, 2, 8),
        role="worker",
    )


def key(number, worker_id=0):
    return CacheEngineKey("some/model", 2, worker_id, number, torch.bfloat16)


def chunk(value, shapes=(CHUNK,), dtypes=(torch.bfloat16,), fmt=MemoryFormat.KV_T2D):
    obj = AdHocMemoryAllocator(device="cpu").allocate(list(shapes), list(dtypes), fmt=fmt)
    for at in range(len(shapes)):
        obj.get_tensor(at).fill_(value + at)
    return obj


def store(backend, *numbers):
    backend.batched_submit_put_task([key(n) for n in numbers], [chunk(n) for n in numbers])


@pytest.fixture
def socket(tmp_path):
    with pgmap.Pool.create("8MiB") as pool:
        path = str(tmp_path / "s")
        pool.serve(path)
        yield path


@pytest.fixture
def backend(socket):
    made = PgmapStorageBackend(config(socket=socket), engine())
    yield made
    made.close()


@pytest.fixture
def small():
    """A pool with room for two chunks."""
    made = PgmapStorageBackend(config(size=2 * CHUNK_BYTES), engine())
    yield made
    made.close()


def test_lmcache_makes_it_of_its_configuration(socket, monkeypatch):
    wanted = config(socket=socket)
    loop = asyncio.new_event_loop()
    allocator = AdHocMemoryAllocator(device="cpu")
    monkeypatch.setattr(LocalCPUBackend, "initialize_allocator", lambda *_: allocator)
    made = CreateStorageBackends(wanted, engine(), loop, dst_device="cpu")
    backend = made["pgmap"]
    assert str(backend) == "PgmapStorageBackend"
    assert backend.get_allocator_backend() is made["LocalCPUBackend"]
    store(backend, 1)
    assert backend.get_blocking(key(1)).tensor.eq(1).all()
    backend.close()
    loop.close()


def test_another_engine_gets_shape_type_and_format_with_the_bytes(backend, socket):
    other = PgmapStorageBackend(config(socket=socket), engine())
    kinds = [
        ((torch.Size([2, 16, 8]),), (torch.bfloat16,), MemoryFormat.KV_T2D),
        ((torch.Size([3, 2, 5, 7]),), (torch.float16,), MemoryFormat.KV_2LTD),
        ((torch.Size([1, 4, 9]),), (torch.uint8,), MemoryFormat.KV_MLA_FMT),
        ((CHUNK, torch.Size([2, 256, 4])), (torch.bfloat16, torch.float32), MemoryFormat.KV_T2D),
    ]
    for number, kind in enumerate(kinds):
        stored = chunk(number + 1, *kind)
        backend.batched_submit_put_task([key(number)], [stored])
        got = other.get_blocking(key(number))
        assert got.get_shapes() == list(kind[0]) and got.get_dtypes() == list(kind[1])
        assert got.get_memory_format() is kind[2] and got.get_size() == stored.get_size()
        for at in range(len(kind[0])):
            assert torch.equal(got.get_tensor(at), stored.get_tensor(at))
        assert got.get_num_tokens() == stored.get_num_tokens()
    other.close()


def test_a_get_copies_nothing_and_its_tensor_outlives_all(socket):
    backend = PgmapStorageBackend(config(socket=socket), engine())
    store(backend, 5)
    first, second = backend.batched_get_blocking([key(5), key(5)])
    assert first.data_ptr == second.data_ptr, "both are the pool's memory"
    tensor = first.tensor
    assert backend.remove(key(5))
    for obj in (first, second):
        obj.ref_count_down()
        assert not obj.is_valid()
    del first, second
    with pgmap.Pool.connect(socket) as pool:
        assert pool.info().draining > 0, "the tensor keeps the chunk"
        backend.close()
        assert tensor.eq(5).all()
        del tensor
        assert pool.info().draining == 0


def test_a_device_gets_a_copy_in_memory_of_lmcache(socket, monkeypatch):
    allocator = AdHocMemoryAllocator(device="cpu")
    monkeypatch.setattr(LocalCPUBackend, "initialize_allocator", lambda *_: allocator)
    cpu = LocalCPUBackend(config(), engine(), "cpu")
    backend = PgmapStorageBackend(config(socket=socket), engine(), cpu, dst_device="cuda:0")
    store(backend, 6)
    first, second = backend.batched_get_blocking([key(6), key(6)])
    assert first.data_ptr != second.data_ptr
    assert first.tensor.eq(6).all() and second.tensor.eq(6).all()
    backend.close()


def test_a_batch_keeps_its_holes_and_a_prefix_ends_at_one(backend):
    store(backend, 1, 3)
    first, hole, last = backend.batched_get_blocking([key(1), key(2), key(3)])
    assert hole is None and first.tensor.eq(1).all() and last.tensor.eq(3).all()
    keys = [key(1), key(2), key(3)]
    assert backend.batched_contains(keys) == 1
    assert asyncio.run(backend.batched_async_contains("look", keys)) == 1
    [only] = asyncio.run(backend.batched_get_non_blocking("look", keys))
    assert only.tensor.eq(1).all()


def test_what_is_stored_twice_is_stored_once(backend):
    called = []
    for _ in range(2):
        backend.batched_submit_put_task([key(1)], [chunk(1)], on_complete_callback=called.append)
    assert called == [key(1)]
    assert not backend.exists_in_put_tasks(key(1))
    # Another worker of the same model has a chunk of its own.
    assert not backend.contains(key(1, worker_id=1))


def test_removal_without_force_spares_what_is_locked(backend):
    store(backend, 1, 2)
    assert backend.pin(key(1)) and backend.pin(key(1)) and not backend.pin(key(9))
    backend.unpin(key(1))
    assert not backend.remove(key(1), force=False)
    assert backend.remove(key(2), force=False) and not backend.contains(key(2))
    backend.unpin(key(1))
    assert backend.batched_remove([key(1), key(2)], force=False) == 1
    assert not backend.contains(key(1))


def test_what_is_locked_is_got_although_another_engine_removed_it(backend, socket):
    store(backend, 1, 2)
    assert backend.batched_contains([key(1)], pin=True) == 1
    other = PgmapStorageBackend(config(socket=socket), engine())
    assert other.batched_remove([key(1), key(2)]) == 2
    locked, gone = backend.batched_get_blocking([key(1), key(2)])
    assert gone is None and locked.tensor.eq(1).all()
    locked.ref_count_down()
    assert not backend.unpin(key(1))
    assert backend.get_blocking(key(1)) is None
    other.close()


def test_a_full_pool_evicts_what_nobody_locks_and_then_says_so(small):
    store(small, 1, 2)
    assert small.pin(key(1))
    store(small, 3)
    assert [small.contains(key(n)) for n in (1, 2, 3)] == [True, False, True]
    assert small.pin(key(3))
    with pytest.raises(RuntimeError, match="1 of 1 chunks"):
        store(small, 4)
    assert small.get_blocking(key(1)).tensor.eq(1).all()
    assert small.get_blocking(key(3)).tensor.eq(3).all()
    small.unpin(key(1))
    store(small, 4)
    assert [small.contains(key(n)) for n in (1, 3, 4)] == [False, True, True]


def test_after_closing_nothing_is_found_and_nothing_is_stored(small):
    store(small, 1)
    small.close()
    small.close()
    assert small.get_blocking(key(1)) is None
    with pytest.raises(RuntimeError, match="closing"):
        store(small, 2)


def test_threads_put_and_get(backend):
    def work(thread):
        for turn in range(20):
            number = thread * 100 + turn
            store(backend, number)
            obj = backend.get_blocking(key(number))
            assert obj.tensor.eq(chunk(number).tensor).all()
            obj.ref_count_down()
            assert backend.remove(key(number))

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))


def test_a_file_that_is_no_chunk_is_a_miss(backend, socket):
    with pgmap.Pool.connect(socket) as pool:
        pool.put(name_of(key(1)), b"no metadata")
        pool.put(name_of(key(2)), b"short", metadata=encode(chunk(2)))
        pool.put(name_of(key(3)), b"text", metadata=b'["KV_T2D", [[1]], ["no type"]]')
    assert backend.batched_get_blocking([key(1), key(2), key(3)]) == [None, None, None]


def test_what_it_cannot_do_is_refused_by_name(backend):
    with pytest.raises(ValueError, match="2 keys for 1 objects"):
        backend.batched_submit_put_task([key(1), key(2)], [chunk(1)])
    many = chunk(1, [torch.Size([2, 8])] * 40, [torch.bfloat16] * 40)
    with pytest.raises(ValueError, match="40 tensors need"):
        backend.batched_submit_put_task([key(1)], [many])
    cached = config(size="1MiB")
    cached.local_cpu = True
    for wrong, word in [(cached, "local_cpu: false"), (config(sice=1), "sice"), (None, "config")]:
        with pytest.raises(ValueError, match=word):
            PgmapStorageBackend(wrong, engine())
    with pytest.raises(RuntimeError, match="LocalCPUBackend"):
        backend.get_allocator_backend()
