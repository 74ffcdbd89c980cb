"""pgmap's secondary tier, made by vLLM's own factory and driven as its tiering manager does."""

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm.v1.kv_offload.tiering.factory")

from vllm.v1.kv_offload.base import LookupResult, make_offload_key  # noqa: E402
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory  # noqa: E402

CONFIG = {"type": "PgmapSecondaryTierManager", "module_path": "pgmap.vllm", "size": "64MiB"}


def job(number, keys, chunks):
    return SimpleNamespace(job_id=number, keys=keys, chunk_ids=np.array(chunks))


def test_chunks_come_back_as_they_were():
    primary = np.random.default_rng(1).integers(0, 255, (16, 256 << 10), dtype=np.uint8)
    tier = SecondaryTierFactory.create_secondary_tier(CONFIG, memoryview(primary), None)
    keys = [make_offload_key(bytes([number]) * 32, 0) for number in range(8)]
    assert tier.lookup(keys[0], None) is LookupResult.MISS
    for turn in range(2):
        tier.submit_store(job(turn, keys, range(8)))
        [done] = tier.get_finished_jobs()
        assert done.success and done.job_id == turn, "also when they are there already"
    assert all(tier.lookup(key, None) is LookupResult.HIT for key in keys)
    tier.submit_load(job(2, keys, range(8, 16)))
    [done] = tier.get_finished_jobs()
    assert done.success and (primary[:8] == primary[8:]).all()
    absent = make_offload_key(b"x" * 32, 0)
    tier.submit_load(job(3, [keys[1], absent], [0, 2]))
    [done] = tier.get_finished_jobs()
    assert not done.success and list(done.successful_keys) == [keys[1]]
    assert (primary[0] == primary[9]).all()
    tier.drain_jobs()
    tier.shutdown()


def test_a_full_pool_fails_the_job():
    primary = np.zeros((2, 1 << 20), dtype=np.uint8)
    config = CONFIG | {"size": "1MiB"}
    tier = SecondaryTierFactory.create_secondary_tier(config, memoryview(primary), None)
    tier.submit_store(job(1, [make_offload_key(b"ab"[at : at + 1] * 32, 0) for at in (0, 1)], [0, 1]))
    [done] = tier.get_finished_jobs()
    assert not done.success
    tier.shutdown()
