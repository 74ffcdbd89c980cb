"""What pgmap's adapter for LMCache promises beyond the interface."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1.distributed.l2_adapters.base")

from lmcache.v1.distributed.api import ObjectKey  # noqa: E402
from lmcache.v1.memory_management import (  # noqa: E402
    MemoryFormat,
    MemoryObjMetadata,
    TensorMemoryObj,
)

import pgmap  # noqa: E402
from pgmap.lmcache import PgmapL2Adapter, names_of  # noqa: E402


def key(number, model="some/model", salt=""):
    return ObjectKey(bytes([number]) * 32, model, 0x01000100, 0, salt)


def obj(value, size=1024):
    shape = torch.Size([size])
    data = MemoryObjMetadata(shape, torch.float32, 0, size * 4, MemoryFormat.KV_2LTD, 1)
    return TensorMemoryObj(torch.full((size,), float(value)), data, parent_allocator=None)


def store(adapter, *numbers):
    task = adapter.submit_store_task([key(n) for n in numbers], [obj(n) for n in numbers])
    assert adapter.pop_completed_store_tasks()[task].is_successful()


def found(adapter, *numbers):
    task = adapter.submit_lookup_and_lock_task([key(number) for number in numbers], {})
    bits = adapter.query_lookup_and_lock_result(task)
    return [bits.test(at) for at in range(len(numbers))]


class Listener:
    def __init__(self):
        self.stored, self.deleted = [], []

    def on_l2_keys_stored(self, keys, sizes):
        self.stored.extend(zip(keys, sizes))

    def on_l2_keys_accessed(self, keys):
        pass

    def on_l2_keys_deleted(self, keys):
        self.deleted.extend(keys)


@pytest.fixture
def socket(tmp_path):
    with pgmap.Pool.create("64MiB") as pool:
        path = str(tmp_path / "s")
        pool.serve(path)
        yield path


def test_what_is_locked_is_loaded_although_another_server_deleted_it(socket):
    adapter, other = PgmapL2Adapter({"socket": socket}), PgmapL2Adapter({"socket": socket})
    store(other, 1, 2)
    assert found(adapter, 1, 2, 3) == [True, True, False]
    other.delete([key(1), key(2)])
    adapter.submit_unlock([key(2)])
    targets = [obj(0), obj(0)]
    task = adapter.submit_load_task([key(1), key(2)], targets)
    bits = adapter.query_load_result(task)
    assert (bits.test(0), bits.test(1)) == (True, False), "one is locked, the other is not"
    assert torch.equal(targets[0].tensor, obj(1).tensor)
    adapter.submit_unlock([key(1)])
    assert found(adapter, 1) == [False]
    adapter.close()
    other.close()


def test_a_new_server_announces_what_an_earlier_one_left(socket):
    earlier = PgmapL2Adapter({"socket": socket})
    store(earlier, 1, 2, 3)
    earlier.close()
    adapter = PgmapL2Adapter({"socket": socket})
    adapter.set_backend_identity("plugin")
    listener = Listener()
    adapter.register_listener(listener)
    assert sorted(listener.stored, key=str) == sorted([(key(n), 4096) for n in (1, 2, 3)], key=str)
    assert adapter.get_usage().bytes_by_cache_salt == {"": 3 * 4096}
    adapter.delete([one for one, _ in listener.stored])
    assert len(listener.deleted) == 3 and adapter.get_usage().bytes_by_cache_salt == {}
    adapter.close()


def test_keys_are_listed_by_pages(socket):
    adapter = PgmapL2Adapter({"socket": socket})
    store(adapter, *range(5))
    pages, cursor = [], None
    while True:
        page = adapter.list_l2_keys("some/model", 2, cursor)
        pages.append([entry.key.to_object_key() for entry in page.entries])
        cursor = page.next_page_token
        if cursor is None:
            break
    assert [len(page) for page in pages] == [2, 2, 1]
    assert {one for page in pages for one in page} == {key(number) for number in range(5)}
    assert adapter.list_l2_keys("other/model").entries == ()
    adapter.close()


def test_a_key_too_long_for_a_name_is_stored_all_the_same():
    long = key(1, "m" * 150, "s" * 100)
    name, other = names_of([long, key(2, "m" * 150, "s" * 100)])
    assert len(name) < 100 and name != other
    adapter = PgmapL2Adapter({"size": "1MiB"})
    task = adapter.submit_store_task([long], [obj(7)])
    assert adapter.pop_completed_store_tasks()[task].is_successful()
    target = obj(0)
    bits = adapter.query_load_result(adapter.submit_load_task([long], [target]))
    assert bits.test(0) and torch.equal(target.tensor, obj(7).tensor)
    adapter.close()


def test_a_full_pool_fails_the_task_and_keeps_what_it_has():
    adapter = PgmapL2Adapter({"size": "64KiB"})
    store(adapter, 1)
    task = adapter.submit_store_task([key(2)], [obj(2, 32768)])
    assert not adapter.pop_completed_store_tasks()[task].is_successful()
    assert found(adapter, 1, 2) == [True, False]
    adapter.close()


def test_parameters_that_it_does_not_know_are_named():
    for parameters, word in [({"sice": 1}, "sice"), ({}, "socket"), ({"evict": "x", "size": 1}, "x")]:
        with pytest.raises(ValueError, match=word):
            PgmapL2Adapter(parameters)


def test_it_says_what_memory_it_has():
    api = pytest.importorskip("lmcache.v1.distributed.api")
    if not hasattr(api, "MemoryTags"):
        pytest.skip("LMCache asks for it from 0.5.7 on")
    for segment in ("dram", "cxl", "storage"):
        adapter = PgmapL2Adapter({"size": "1MiB", "segment": segment})
        tags = api.MemoryTags(api.MemorySegment(segment), api.MemoryResidency.LOCAL)
        assert adapter.get_memory_tags() == tags
        adapter.close()
    with pytest.raises(ValueError, match="tape"):
        PgmapL2Adapter({"size": "1MiB", "segment": "tape"})
