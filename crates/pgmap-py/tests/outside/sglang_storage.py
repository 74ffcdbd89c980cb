"""pgmap's storage backend, made by SGLang's own factory."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt.mem_cache.storage.backend_factory")

from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig  # noqa: E402
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory  # noqa: E402

import pgmap  # noqa: E402

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


def test_a_page_that_finds_no_room_is_not_stored():
    storage = StorageBackendFactory.create_backend(
        "dynamic", config(extra_config=EXTRA | {"size": "1MiB"}), None
    )
    small, large = torch.zeros(1024), torch.zeros(1 << 20)
    assert not storage.batch_set(["small", "large"], [small, large])
    assert storage.exists("small") and not storage.exists("large")


def test_parameters_are_checked_but_for_those_that_are_sglangs():
    theirs = {"interface_v1": 1, "file_storage_path": "/srv", "prefetch_threshold": 64}
    storage = StorageBackendFactory.create_backend(
        "dynamic", config(extra_config=EXTRA | theirs), None
    )
    storage.close()
    with pytest.raises(ValueError, match="no parameter colour"):
        StorageBackendFactory.create_backend(
            "dynamic", config(extra_config=EXTRA | {"colour": "red"}), None
        )


PARTS = [
    dict(model_name="another/model"),
    dict(model_name="a/" + 300 * "long"),
    dict(model_name="a/" + 301 * "long"),
    dict(tp_rank=1, tp_size=2),
    dict(tp_rank=1, tp_size=4),
    dict(pp_rank=0, pp_size=2),
    dict(pp_rank=1, pp_size=2),
    dict(attn_cp_rank=0, attn_cp_size=2),
    dict(attn_cp_rank=1, attn_cp_size=2),
]


def test_parts_of_a_page_have_names_of_their_own(tmp_path):
    with pgmap.Pool.create("64MiB") as pool:
        pool.serve(tmp_path / "s")
        extra = {name: value for name, value in EXTRA.items() if name != "size"}
        extra["socket"] = str(tmp_path / "s")
        for changes in [{}, *PARTS]:
            storage = StorageBackendFactory.create_backend(
                "dynamic", config(extra_config=extra, **changes), None
            )
            assert not storage.exists("key"), changes
            assert storage.set("key", torch.zeros(16)) and storage.exists("key")
        assert len(pool.list("sglang/")) == 1 + len(PARTS)
        # Attention ranks of data-parallel replicas have the same pages, and so have those of an MLA
        # model.
        of_replica = StorageBackendFactory.create_backend(
            "dynamic", config(extra_config=extra, dp_rank=1), None
        )
        assert of_replica.exists("key")
        for rank in range(2):
            storage = StorageBackendFactory.create_backend(
                "dynamic",
                config(extra_config=extra, is_mla_model=True, tp_rank=rank, tp_size=2),
                None,
            )
            assert storage.exists("key") == (rank == 1)
            assert storage.set("key", torch.zeros(16))
