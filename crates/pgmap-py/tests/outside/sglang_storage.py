"""pgmap's storage backend, made by SGLang's own factory."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt.mem_cache.storage.backend_factory")

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

EXTRA = {
    "backend_name": "pgmap",
    "module_path": "pgmap.sglang",
    "class_name": "PgmapHiCacheStorage",
    "size": "64MiB",
}


def config(**changes):
    values = dict(
        tp_rank=0,
        tp_size=1,
        pp_rank=0,
        pp_size=1,
        attn_cp_rank=0,
        attn_cp_size=1,
        is_mla_model=False,
        enable_storage_metrics=False,
        is_page_first_layout=True,
        model_name="some/model",
        extra_config=EXTRA,
    )
    return HiCacheStorageConfig(**(values | changes))


def test_pages_come_back_as_they_were():
    storage = StorageBackendFactory.create_backend("dynamic", config(), None)
    pages = [torch.rand(1024, dtype=torch.float32).to(torch.bfloat16) for _ in range(4)]
    keys = [f"page{number}" for number in range(4)]
    assert storage.batch_exists(keys) == 0 and not storage.exists(keys[0])
    assert storage.batch_set(keys[:3], pages[:3])
    assert storage.set(keys[0], pages[0]), "it is there already"
    assert storage.batch_exists(keys) == 3 and storage.exists(keys[2])
    targets = [torch.zeros(1024, dtype=torch.bfloat16) for _ in keys]
    got = storage.batch_get(keys, targets)
    assert got[3] is None and got[:3] == targets[:3]
    assert all(torch.equal(page, target) for page, target in zip(pages[:3], targets))
    assert storage.get("nothing", targets[3]) is None
    storage.clear()
    assert storage.batch_exists(keys) == 0
