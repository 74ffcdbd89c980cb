"""pgmap below SGLang's own cache controller and host pools, as the server has them, on a CPU.

No kernel copies between a device and the host pool here: pages are written into the host pool, and
looked at there. All else is SGLang's: what it hashes, queues, asks of the storage, and its threads.
"""

import contextlib
import os
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller")

from sglang.srt.mem_cache.base_prefix_cache import CacheRequestHandle  # noqa: E402
from sglang.srt.mem_cache.device_pool_info import MambaStateBufferInfo  # noqa: E402
from sglang.srt.mem_cache.hicache_storage import (  # noqa: E402
    PoolHitPolicy,
    PoolName,
    PoolTransfer,
)
from sglang.srt.mem_cache.hybrid_cache.hybrid_cache_controller import (  # noqa: E402
    HybridCacheController,
)
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, MLATokenToKVPool  # noqa: E402
from sglang.srt.mem_cache.memory_pool_host import LogicalHostPool  # noqa: E402
from sglang.srt.mem_cache.pool_host import HostPoolGroup, PoolEntry  # noqa: E402
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope  # noqa: E402
from sglang.srt.mem_cache.pool_host.mamba import MambaPoolHost  # noqa: E402
from sglang.srt.mem_cache.pool_host.mha import get_mha_host_pool_cls  # noqa: E402
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost  # noqa: E402
from sglang.srt.mem_cache.utils import get_storage_hash_str  # noqa: E402
from sglang.srt.runtime_context import get_parallel  # noqa: E402

import pgmap  # noqa: E402

PAGE = 16
SMALL = dict(heads=2, dim=32, layers=3)
# More than SGLang stores or fetches at a time.
PAGES = 150
RANKS = dict(tp_rank=0, tp_size=1, pp_rank=0, pp_size=1, attn_dcp_rank=0, attn_dcp_size=1)

torch.set_num_threads(1)
# SGLang compiles what hashes tokens when that is first used, with ninja, which pip has put beside
# the interpreter.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
try:
    get_storage_hash_str([0] * PAGE, None, page_size=PAGE)
except RuntimeError as error:
    reason = f"{error}: it needs ninja, a compiler of C++ and OpenSSL's headers"
    pytest.skip(reason, allow_module_level=True)


def host_pool(kind, layout, pages, heads, dim, layers):
    """A host pool, and the device pool that it is made for."""
    common = dict(size=PAGE, page_size=PAGE, dtype=torch.bfloat16, layer_num=layers, device="cpu")
    common["enable_memory_saver"] = False
    if kind == "mla":
        device = MLATokenToKVPool(kv_lora_rank=48, qk_rope_head_dim=16, **common)
    else:
        v_head_dim = dim // 2 if kind == "mha of two widths" else dim
        device = MHATokenToKVPool(head_num=heads, head_dim=dim, v_head_dim=v_head_dim, **common)
    if kind == "no memory":
        return LogicalHostPool(pages * PAGE, PAGE, layout=layout), device
    info = device.get_device_pool_infos()[0].buffer_info
    sizes = dict(device_capacity_tokens=PAGE, start_layer=0, end_layer=layers)
    sizes |= dict(host_token_capacity=pages * PAGE, pin_memory=False)
    if kind == "mla":
        make, sizes = MLATokenToKVPoolHost, sizes | dict(target_layer_num=layers)
    else:
        make = get_mha_host_pool_cls(info)
    # SGLang leaves 10 GB of the machine alone otherwise.
    with host_memory_budget_scope(1 << 30):
        return make(info, 1.0, 0, PAGE, layout, **sizes), device


def mamba_pool(extras):
    """A host pool of states, of 4 device slots; `extras` is what a slot has beside its state."""
    info = MambaStateBufferInfo(
        temporal=torch.zeros(2, 4, 4, 8),
        conv=(torch.zeros(2, 4, 6, dtype=torch.bfloat16),),
        extra_checkpoint_buffers=extras,
    )
    with host_memory_budget_scope(1 << 30):
        return MambaPoolHost(info, 2.0, 0, device_capacity=4, pin_memory=False, layout="page_first")


class Engine:
    """SGLang's controller with what surrounds it in the server."""

    def __init__(self, socket, kind="mha", layout="page_first", pages=PAGES, side=None, **options):
        extra = dict(
            backend_name="pgmap",
            module_path="pgmap.sglang",
            class_name="PgmapHiCacheStorage",
            interface_v1=options.pop("interface_v1", 1),
            socket=str(socket),
        )
        ranks, size = RANKS | options.pop("ranks", {}), options.pop("size", SMALL)
        self.host, device = host_pool(kind, layout, pages, **size)
        entries = [PoolEntry(PoolName.KV, self.host, device, lambda layer: layer, True)]
        if side:
            self.side, side_device = host_pool("mha", layout, pages, **size)
            self.side = options.pop("side_pool", self.side)
            entries.append(PoolEntry(side, self.side, side_device, lambda layer: layer))
        with get_parallel().override(**ranks):
            self.controller = HybridCacheController(
                SimpleNamespace(get_kvcache=lambda: device),
                HostPoolGroup(entries),
                PAGE,
                options.pop("tp_group", None),
                threading.Event(),
                io_backend="direct",
                storage_backend="dynamic",
                prefetch_threshold=PAGE,
                model_name=options.pop("model_name", "some/model"),
                storage_backend_extra_config=extra,
                **options,
            )
        self.extra = extra

    @property
    def storage(self):
        return self.controller.storage_backend

    def store(self, tokens, indices, side_pools=None):
        """Of how many pages SGLang says that they are stored."""
        hashes = get_storage_hash_str(tokens, None, page_size=PAGE)
        number = self.controller.write_storage(
            indices, tokens, hash_value=hashes, extra_pools=side_pools
        )
        done = self.controller.ack_backup_queue.get(timeout=30)
        assert done.id == number
        return done.completed_tokens // PAGE

    def prefetch(self, tokens, side_pools=None):
        """Where the pages are that were found, and how often SGLang says there is one."""
        handle = CacheRequestHandle("request", 0)
        self.controller.prefetch(handle, tokens, extra_pools=side_pools)
        operation = self.controller.prefetch_hit_queue.get(timeout=30)
        nr_hits = operation.storage_hit_count // PAGE
        # The scheduler does this.
        operation.host_indices = self.controller.mem_pool_host.alloc(nr_hits * PAGE)
        assert operation.host_indices is not None, "the host pool is full"
        self.controller.prefetch_buffer.put(operation)
        completed, self.side_hits = 0, None
        while True:
            ack = self.controller.ack_prefetch_queue.get(timeout=30)
            completed = ack.completed_tokens if ack.completed_tokens is not None else completed
            self.side_hits = ack.pool_hits or self.side_hits
            if ack.completed_req:
                assert nr_hits >= completed // PAGE
                return operation.host_indices, completed // PAGE

    def close(self):
        self.controller.detach_storage_backend()


def tokens_of(sequence, pages=PAGES):
    return [sequence * 1_000_000 + token for token in range(pages * PAGE)]


def parts(host, at):
    """What a page of a host pool consists of, whatever its layout, as integers."""
    try:
        tensors = [host.get_data_page(at, flat=False)]
    except NotImplementedError:
        place = at // PAGE if host.layout == "page_first_direct" else slice(at, at + PAGE)
        tensors = [host.k_buffer[place], host.v_buffer[place]]
    return [tensor.view(torch.int16) for tensor in tensors]


def contents(part, number, nth):
    """Bytes that no other page has."""
    words = torch.arange(part.numel(), dtype=torch.int64) * 7 + number * 7919 + nth * 104_729
    return words.to(torch.int16).reshape(part.shape)


def fill(host, indices, first=0):
    for number, at in enumerate(indices.tolist()[::PAGE], first):
        for nth, part in enumerate(parts(host, at)):
            part.copy_(contents(part, number, nth))


def nr_wrong(host, indices, nr_pages, first=0):
    """Of the first pages, those of which any byte is not as it was filled in."""
    starts = indices.tolist()[: nr_pages * PAGE : PAGE]
    return sum(
        not all(
            torch.equal(part, contents(part, number, nth))
            for nth, part in enumerate(parts(host, at))
        )
        for number, at in enumerate(starts, first)
    )


@pytest.fixture
def engines(tmp_path):
    """Makes engines on one pool."""
    pool = pgmap.Pool.create("64MiB", max_files=10_000)
    pool.serve(tmp_path / "pool.sock")
    with contextlib.ExitStack() as stack:

        def engine(*arguments, **options):
            made = Engine(tmp_path / "pool.sock", *arguments, **options)
            stack.callback(made.close)
            return made

        engine.pool = pool
        yield engine
    pool.close()


def forbid_copies(engine, monkeypatch):
    def forbidden(*_):
        raise AssertionError("SGLang makes a copy of a page")

    def of_a_view(index, flat=True, real=engine.host.get_data_page):
        return forbidden() if flat else real(index, flat=False)

    monkeypatch.setattr(engine.host, "get_data_page", of_a_view)
    monkeypatch.setattr(engine.host, "get_dummy_flat_data_page", forbidden)
    monkeypatch.setattr(engine.host, "set_from_flat_data_page", forbidden)


def store_and_prefetch(one, other):
    tokens = tokens_of(1)
    indices = one.host.alloc(PAGES * PAGE)
    fill(one.host, indices)
    assert one.store(tokens, indices) == PAGES
    found, nr_hits = other.prefetch(tokens + tokens_of(2, pages=2))
    assert nr_hits == PAGES and nr_wrong(other.host, found, nr_hits) == 0
    assert other.prefetch(tokens_of(2))[1] == 0


@pytest.mark.parametrize(
    "kind, layout, nr_ranges",
    [
        ("mha", "page_first", 2),
        ("mha", "page_first_direct", 2),
        ("mha", "page_head", 2),
        ("mha of two widths", "page_first", 2),
        ("mha of two widths", "page_first_direct", 2),
        ("mla", "page_first", 1),
        ("mla", "page_first_direct", 1),
    ],
)
def test_pages_are_copied_from_and_to_the_host_pool_itself(
    engines, kind, layout, nr_ranges, monkeypatch
):
    one, other = engines(kind, layout), engines(kind, layout)
    if kind != "mha of two widths":
        forbid_copies(one, monkeypatch)
        forbid_copies(other, monkeypatch)
    store_and_prefetch(one, other)
    assert len(engines.pool.list("sglang/")) == PAGES * nr_ranges


@pytest.mark.parametrize(
    "kind, layout, interface_v1",
    [
        ("mha", "layer_first", 1),
        ("mla", "layer_first", 1),
        ("mha", "layer_first", 0),
        ("mha", "page_first", 0),
        ("mha", "page_first_direct", 0),
        ("mha", "page_head", 0),
        ("mla", "layer_first", 0),
        ("mla", "page_first", 0),
    ],
)
def test_pages_that_are_copied_once_more_come_back_too(engines, kind, layout, interface_v1):
    one, other = (engines(kind, layout, interface_v1=interface_v1) for _ in range(2))
    store_and_prefetch(one, other)
    assert len(engines.pool.list("sglang/")) == PAGES


@pytest.mark.parametrize("kind", ["mha", "mla"])
def test_pages_in_another_order_are_other_pages(engines, kind):
    tokens = tokens_of(1)
    layouts = ["layer_first", "page_first", "page_first_direct"]
    for nth, layout in enumerate(layouts):
        engine = engines(kind, layout)
        assert engine.prefetch(tokens)[1] == 0, layout
        indices = engine.host.alloc(PAGES * PAGE)
        fill(engine.host, indices, first=nth * PAGES)
        assert engine.store(tokens, indices) == PAGES
        engine.host.free(indices)
        found, nr_hits = engine.prefetch(tokens[: PAGE * 5])
        assert nr_hits == 5 and nr_wrong(engine.host, found, 5, first=nth * PAGES) == 0


def test_each_rank_stores_its_part_of_a_page(engines):
    tokens = tokens_of(1)
    ranks = [dict(tp_rank=rank, tp_size=2) for rank in range(2)]
    ranks += [dict(pp_rank=rank, pp_size=2) for rank in range(2)] + [{}]
    stored = [engines(ranks=rank) for rank in ranks]
    for nth, engine in enumerate(stored):
        assert engine.prefetch(tokens)[1] == 0, ranks[nth]
        indices = engine.host.alloc(PAGES * PAGE)
        fill(engine.host, indices, first=nth * PAGES)
        assert engine.store(tokens, indices) == PAGES
        engine.host.free(indices)
    for nth, engine in enumerate(stored):
        found, nr_hits = engine.prefetch(tokens)
        assert nr_hits == PAGES and nr_wrong(engine.host, found, PAGES, nth * PAGES) == 0


def test_of_an_mla_model_one_rank_stores_for_all(engines):
    first, second = (engines("mla", ranks=dict(tp_rank=rank, tp_size=2)) for rank in range(2))
    tokens = tokens_of(1)
    indices = second.host.alloc(PAGES * PAGE)
    assert second.store(tokens, indices) == 0 and not engines.pool.list("sglang/")
    second.host.free(indices)
    store_and_prefetch(first, second)


def transfer(name, policy, engine, tokens):
    """What SGLang asks for of a side pool: the last pages, or those at the pages of the KV pool."""
    if policy == PoolHitPolicy.ALL_PAGES:
        return PoolTransfer(name, hit_policy=policy, indices_from_pool=PoolName.KV)
    keys = get_storage_hash_str(tokens, None, page_size=PAGE)[-3:]
    indices = engine.side.alloc(3 * PAGE)
    return PoolTransfer(name, host_indices=indices, keys=keys, hit_policy=policy)


@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
@pytest.mark.parametrize(
    "name, policy",
    [
        (PoolName.SWA, PoolHitPolicy.TRAILING_PAGES),
        (PoolName.INDEXER, PoolHitPolicy.ALL_PAGES),
    ],
)
def test_pages_of_a_side_pool_go_with_those_of_attention(engines, layout, name, policy):
    one, other = (engines("mha", layout, side=name) for _ in range(2))
    tokens = tokens_of(1, pages=20)
    indices = one.host.alloc(20 * PAGE)
    fill(one.host, indices)
    side = transfer(name, policy, one, tokens)
    side_indices = indices if side.host_indices is None else side.host_indices
    fill(one.side, side_indices, first=1000)
    assert one.store(tokens, indices, [side]) == 20

    side = transfer(name, policy, other, tokens)
    found, nr_hits = other.prefetch(tokens, [side])
    assert nr_hits == 20 and nr_wrong(other.host, found, 20) == 0
    side_found = found if side.host_indices is None else side.host_indices
    nr_of_side = len(side_indices) // PAGE
    assert nr_wrong(other.side, side_found, nr_of_side, first=1000) == 0
    other.host.free(found)

    # Without a page of the side pool that is needed what follows is of no use.
    files = [file.name for file in engines.pool.list("sglang/")]
    gone = get_storage_hash_str(tokens, None, page_size=PAGE)[18]
    engines.pool.unlink_many([one for one in files if gone in one and f"@{name}." in one])
    side = transfer(name, policy, other, tokens)
    nr_hits = other.prefetch(tokens, [side])[1]
    assert nr_hits == (18 if policy == PoolHitPolicy.ALL_PAGES else 0)


@pytest.mark.parametrize(
    "extras, nr_ranges", [((), 2), ((torch.zeros(4, 5),), 1)], ids=["state", "more than a state"]
)
def test_each_rank_has_states_of_its_own_beside_shared_pages(engines, extras, nr_ranges):
    tokens = tokens_of(1, pages=20)
    hashes = get_storage_hash_str(tokens, None, page_size=PAGE)
    ranks = [
        engines(
            "mla",
            side=PoolName.MAMBA,
            side_pool=mamba_pool(extras),
            ranks=dict(tp_rank=rank, tp_size=2),
        )
        for rank in range(2)
    ]

    def state(engine):
        slot = engine.side.alloc(1)
        policy = PoolHitPolicy.TRAILING_PAGES
        return PoolTransfer(PoolName.MAMBA, slot, keys=hashes[-1:], hit_policy=policy)

    states = []
    for rank, engine in enumerate(ranks):
        indices = engine.host.alloc(20 * PAGE)
        fill(engine.host, indices)
        side = state(engine)
        states.append(torch.full_like(engine.side.get_data_page(0), rank + 1))
        engine.side.set_from_flat_data_page(side.host_indices.item(), states[rank])
        assert engine.prefetch(tokens, [state(engine)])[1] == 0, "no state of this rank"
        assert engine.store(tokens, indices, [side]) == 20
    assert len(engines.pool.list("sglang/")) == 20 + 2 * nr_ranges
    for rank, engine in enumerate(ranks):
        side = state(engine)
        found, nr_hits = engine.prefetch(tokens, [side])
        assert nr_hits == 20 and nr_wrong(engine.host, found, 20) == 0
        assert torch.equal(engine.side.get_data_page(side.host_indices.item()), states[rank])


@pytest.mark.parametrize("interface_v1", [0, 1])
@pytest.mark.parametrize("layout", ["page_first", "layer_first"])
def test_side_pools_may_be_all_there_is(engines, layout, interface_v1):
    """As of models whose pool of keys and values only counts tokens."""
    one, other = (
        engines("no memory", layout, side=PoolName.INDEXER, interface_v1=interface_v1)
        for _ in range(2)
    )
    tokens = tokens_of(1)
    indices = one.host.alloc(PAGES * PAGE)
    fill(one.side, indices)
    sides = [
        transfer(PoolName.INDEXER, PoolHitPolicy.ALL_PAGES, engine, tokens)
        for engine in (one, other)
    ]
    assert one.store(tokens, indices, sides[:1]) == PAGES
    assert all("@indexer." in file.name for file in engines.pool.list("sglang/"))
    found, nr_hits = other.prefetch(tokens + tokens_of(2), sides[1:])
    assert nr_hits == PAGES and nr_wrong(other.side, found, PAGES) == 0


def test_sglang_counts_what_was_moved(engines):
    engine, other = (engines(enable_storage_metrics=True) for _ in range(2))
    store_and_prefetch(engine, other)
    stats = engine.storage.get_stats()
    assert stats.backup_pgs == [128, 22] and not stats.prefetch_pgs
    assert len(stats.backup_bandwidth) == 2 and min(stats.backup_bandwidth) > 0
    assert engine.storage.get_stats().backup_pgs == []
    assert other.storage.get_stats().prefetch_pgs == [128, 22]


def test_a_storage_is_cleared_detached_and_attached_again(engines):
    engine, of_another_model = engines(), engines(model_name="another/model")
    tokens = tokens_of(1)
    indices = engine.host.alloc(PAGES * PAGE)
    for one in (engine, of_another_model):
        assert one.store(tokens, indices) == PAGES
    assert engine.controller.clear_storage_backend()
    assert len(engines.pool.list("sglang/")) == 2 * PAGES, "those of the other model"
    assert engine.store(tokens, indices) == PAGES
    storage = engine.storage
    engine.controller.detach_storage_backend()
    with pytest.raises(RuntimeError, match="closed"):
        storage.exists("key")
    with get_parallel().override(**RANKS):
        engine.controller.attach_storage_backend(
            "dynamic", PAGE, "some/model", engine.extra, engine.controller.mem_pool_host.entries
        )
    engine.host.free(indices)
    assert engine.prefetch(tokens)[1] == PAGES
