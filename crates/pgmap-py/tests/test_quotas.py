"""Quotas, water marks and pools that are connected to read alone."""

import os

import pytest

import pgmap
from conftest import until

MIB = 1 << 20


def test_a_quota_refuses_and_evicts_what_it_counts(pool):
    pool.put("kv/kept", bytes(MIB))
    pool.set_quota(prefix="kv/", nbytes="3MiB", files=5)
    for number in range(4):
        pool.put(f"kv/{number}", bytes(MIB), evictable=1)
    assert [file.name for file in pool.list("kv/")] == ["kv/2", "kv/3", "kv/kept"]
    pool.put("other", bytes(4 * MIB))
    with pytest.raises(pgmap.OverQuota, match=r"prefix \"kv/\" is 3145728 bytes") as raised:
        pool.put("kv/large", bytes(3 * MIB))
    assert raised.value.errno == 122
    (quota,) = pool.quotas()
    assert (quota.prefix, quota.uid, quota.nbytes, quota.files) == ("kv/", None, 3 * MIB, 5)
    assert quota.used_nbytes <= 3 * MIB and quota.used_files == len(pool.list("kv/"))
    assert pool.stat("other").uid == os.getuid()
    pool.remove_quota(prefix=b"kv/")
    pool.put("kv/large", bytes(3 * MIB))
    for odd in ({}, {"prefix": "a", "uid": 1}):
        with pytest.raises(ValueError):
            pool.set_quota(**odd, files=1)
    with pytest.raises(pgmap.Error, match="limits nothing"):
        pool.set_quota(uid=1)


def test_a_batch_says_which_of_its_items_a_quota_refused(pool):
    pool.set_quota(uid=os.getuid(), files=2)
    raised = pool.put_many(["a", "b", "c"], [b"x"] * 3)
    assert raised[:2] == [None, None] and isinstance(raised[2], pgmap.OverQuota)


def test_water_marks_keep_room_free(pool):
    size = pool.info().size
    pool.set_water_marks(4 * MIB, "8MiB")
    assert pool.water_marks() == (4 * MIB, 8 * MIB)
    for number in range(size // MIB - 3):
        pool.put(f"{number:03}", bytes(MIB), evictable=1)
    until("room is made", lambda: pool.info().free >= 8 * MIB)
    assert pool.info().evicted > 0


def test_who_connects_to_read_changes_nothing(pool, socket):
    pool.put("block", b"tokens")
    with pgmap.Pool.connect(socket, read_only=True) as reader:
        assert reader.read_only and not pool.read_only
        view = memoryview(reader.get("block"))
        assert bytes(view) == b"tokens" and view.readonly
        for change in (
            lambda: reader.put("other", b"x"),
            lambda: reader.unlink("block"),
            lambda: reader.rename("block", "other"),
            lambda: reader.set_quota(uid=0, files=1),
        ):
            with pytest.raises(pgmap.ReadOnly, match="attached read-only"):
                change()
        view.release()
    assert bytes(memoryview(pool.get("block"))) == b"tokens"
