"""A storage backend for SGLang's hierarchical cache (HiCache).

Configured as a dynamic backend: ``--hicache-storage-backend dynamic`` and, as extra configuration::

    {"backend_name": "pgmap", "module_path": "pgmap.sglang", "class_name": "PgmapHiCacheStorage",
     "interface_v1": 1, "socket": "/run/pgmap/pool.sock"}

Other parameters: ``size`` and ``directory``, ``deadline``. The pool evicts the least recently used
pages when a store needs room.

With ``interface_v1`` pages are copied between the engine's host pool and the pool, and nowhere
else, if the host pool's layout has a page in few ranges: all layouts but ``layer_first``. Without
it SGLang copies each page once more.
"""

import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pgmap import Exists, Pool
from pgmap._adapters import attach, require_version, short_name

__all__ = ["PgmapHiCacheStorage", "require"]

if TYPE_CHECKING:
    PgmapHiCacheStorage: Any

_PREFIX = "sglang/"
# What SGLang reads of the extra configuration of a dynamic backend, or adds to it.
_NOT_OURS = (
    "allocator",
    "backend_name",
    "class_name",
    "file_storage_path",
    "hicache_storage_pass_prefix_keys",
    "interface_v1",
    "module_path",
    "prefetch_threshold",
    "prefetch_timeout_base",
    "prefetch_timeout_per_ki_token",
)
# With room for a page's key in what a name may have.
_MAX_SCOPE_BYTES = 120


def require() -> str:
    """SGLang's version; ImportError where it is missing or not known."""
    return require_version("sglang", "0.5.23", "0.6")


def memory_of(tensor: Any) -> tuple[int, int]:
    """Address and size of a tensor of the CPU."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu":
        raise ValueError("a page is contiguous memory of the CPU")
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()


def nr_ranges_of(host: Any) -> int:
    """In how many ranges of memory a page of a host pool lies; 0 if it is to be copied into one."""
    if host.layout == "layer_first" or host.size_per_token == 0:
        return 0
    import torch

    try:
        addresses, _ = host.get_page_buffer_meta(torch.arange(host.page_size))
    except (NotImplementedError, ValueError):
        return 0
    return len(addresses)


class PoolFiles:
    """The pages of one of the engine's host pools, each in a file or a few.

    A page that lies in few ranges has a file for each, so that a batch is one call, and takes the
    interpreter's lock once. Of another the host pool itself makes a copy in one range.
    """

    def __init__(self, pool: Pool, scope: str, host: Any, nr_ranges: int) -> None:
        self._pool, self._host, self._nr_ranges = pool, host, nr_ranges
        self._page_size = getattr(host, "page_size", 1) or 1
        # The anchor of a group whose pages are all in other pools has no memory.
        nbytes_of_token = getattr(host, "size_per_token", None)
        self._is_empty = nbytes_of_token == 0
        # Pages that lie in another order, or have another size, are not the same pages.
        nbytes = (nbytes_of_token or 0) * self._page_size
        dtype = str(getattr(host, "dtype", "")).removeprefix("torch.")
        self.prefix = f"{scope}.{getattr(host, 'layout', '')}.{dtype}.{nbytes}@"

    def names(self, keys: list[str]) -> list[str]:
        """The names of all files of these pages."""
        if self._nr_ranges > 1:
            keys = [f"{key}.{nth}" for key in keys for nth in range(self._nr_ranges)]
        return [short_name(self.prefix + key, self.prefix) for key in keys]

    def _by_page(self, are_good: list[bool]) -> list[bool]:
        step = max(self._nr_ranges, 1)
        return [all(are_good[at : at + step]) for at in range(0, len(are_good), step)]

    def count(self, keys: list[str]) -> int:
        """How many pages there are before the first that is missing."""
        if self._is_empty:
            return len(keys)
        return self._pool.exists_prefix(self.names(keys)) // max(self._nr_ranges, 1)

    def exist(self, keys: list[str]) -> list[bool]:
        """For each page whether it is there."""
        if self._is_empty:
            return [True] * len(keys)
        return self._by_page(self._pool.exists_many(self.names(keys)))

    def put(self, keys: list[str], ranges: list[tuple[int, int]]) -> list[bool]:
        """Stores memory as pages: for each whether it is there now."""
        if self._is_empty:
            return [True] * len(keys)
        raised = self._pool.put_many(self.names(keys), ranges, evictable=1)
        return self._by_page([error is None or isinstance(error, Exists) for error in raised])

    def read(self, keys: list[str], ranges: list[tuple[int, int]]) -> list[bool]:
        """Copies pages into memory: for each whether it was there."""
        if self._is_empty:
            return [True] * len(keys)
        lengths = self._pool.read_many(self.names(keys), ranges)
        return self._by_page([length == nbytes for length, (_, nbytes) in zip(lengths, ranges)])

    def put_pages(self, keys: list[str], indices: Any) -> list[bool]:
        """As `put`, of pages of the host pool that begin at every page-size-th of the indices."""
        if not self._has_indices(keys, indices):
            return [False] * len(keys)
        if self._nr_ranges:
            return self.put(keys, self._ranges(indices))
        pages = [self._host.get_data_page(at) for at in indices.tolist()[:: self._page_size]]
        return self.put(keys, [memory_of(page) for page in pages])

    def read_pages(self, keys: list[str], indices: Any) -> list[bool]:
        """As `read`, into pages of the host pool."""
        if not self._has_indices(keys, indices):
            return [False] * len(keys)
        if self._nr_ranges:
            return self.read(keys, self._ranges(indices))
        pages = [self._host.get_dummy_flat_data_page() for _ in keys]
        are_read = self.read(keys, [memory_of(page) for page in pages])
        for is_read, at, page in zip(are_read, indices.tolist()[:: self._page_size], pages):
            if is_read:
                self._host.set_from_flat_data_page(at, page)
        return are_read

    def _has_indices(self, keys: list[str], indices: Any) -> bool:
        return indices is not None and len(indices) == len(keys) * self._page_size

    def _ranges(self, indices: Any) -> list[tuple[int, int]]:
        return list(zip(*self._host.get_page_buffer_meta(indices), strict=True))


def _make_storage() -> type:
    require()
    from sglang.srt.mem_cache.hicache_storage import (
        HiCacheStorage,
        PoolHitPolicy,
        PoolName,
        PoolTransferResult,
    )

    class PgmapHiCacheStorage(HiCacheStorage):
        """Pages of the host's cache as files of a pool."""

        def __init__(self, storage_config: Any, *_: Any, **__: Any) -> None:
            extra = dict(storage_config.extra_config or {})
            self._config, self._is_v1 = storage_config, bool(extra.get("interface_v1", 0))
            for name in _NOT_OURS:
                extra.pop(name, None)
            self._pool = attach("sglang", extra)
            self._stats = _new_stats() if storage_config.enable_storage_metrics else None
            self._files: dict[Any, PoolFiles] = {}
            self._register(PoolName.KV, None)

        def _register(self, name: Any, host: Any) -> None:
            config = self._config
            parts = [config.model_name or "", f"pp{config.pp_rank}.{config.pp_size}"]
            parts.append(f"cp{config.attn_cp_rank}.{config.attn_cp_size}")
            # Ranks hold different parts of a page under one key; those of an MLA model the same,
            # except in pools of attention heads and of Mamba states.
            if not config.is_mla_model or name == PoolName.MAMBA or hasattr(host, "head_num"):
                parts.append(f"tp{config.tp_rank}.{config.tp_size}")
            scope = "@".join(parts)
            if len(scope.encode()) > _MAX_SCOPE_BYTES:
                scope = hashlib.sha256(scope.encode()).hexdigest()
            # What SGLang copies itself is one range.
            is_by_ranges = host is not None and (self._is_v1 or name != PoolName.KV)
            nr_ranges = nr_ranges_of(host) if is_by_ranges else 0
            scope = f"{_PREFIX}{scope}@{name}"
            self._files[name] = PoolFiles(self._pool, scope, host, nr_ranges)

        def register_mem_pool_host(self, mem_pool_host: Any) -> None:
            super().register_mem_pool_host(mem_pool_host)
            self._register(PoolName.KV, mem_pool_host)

        def register_mem_host_pool_v2(self, host_pool: Any, host_pool_name: Any) -> None:
            super().register_mem_host_pool_v2(host_pool, host_pool_name)
            self._register(host_pool_name, host_pool)

        def exists(self, key: str) -> bool:
            return self.batch_exists([key]) == 1

        def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
            return self._files[PoolName.KV].count(keys)

        def batch_get_v1(
            self, keys: list[str], host_indices: Any, extra_info: Any = None
        ) -> list[bool]:
            return self._timed("prefetch", self._files[PoolName.KV].read_pages, keys, host_indices)

        def batch_set_v1(
            self, keys: list[str], host_indices: Any, extra_info: Any = None
        ) -> list[bool]:
            return self._timed("backup", self._files[PoolName.KV].put_pages, keys, host_indices)

        def batch_exists_v2(
            self, keys: list[str], pool_transfers: Any = None, extra_info: Any = None
        ) -> Any:
            nr_pages = self.batch_exists(keys)
            hits = {PoolName.KV: nr_pages} if nr_pages else {}
            # A prefix is of use if each pool has what SGLang needs of it: all, or the last pages.
            lengths = set(range(1, nr_pages + 1))
            for transfer in pool_transfers or []:
                needed = nr_pages
                if transfer.hit_policy == PoolHitPolicy.TRAILING_PAGES:
                    needed = max(1, len(transfer.keys or ()))
                elif transfer.hit_policy != PoolHitPolicy.ALL_PAGES:
                    raise ValueError(f"pgmap.sglang has no hit policy {transfer.hit_policy}")
                are_there = self._files[transfer.name].exist(keys[:nr_pages])
                good, nr_in_a_row = set(), 0
                for length, is_there in enumerate(are_there, 1):
                    nr_in_a_row = nr_in_a_row + 1 if is_there else 0
                    if nr_in_a_row >= min(length, needed):
                        good.add(length)
                if good:
                    hits[transfer.name] = max(good)
                lengths &= good
            return PoolTransferResult(max(lengths, default=0), hits, sorted(lengths))

        def batch_get_v2(self, transfers: Any, extra_info: Any = None) -> dict[Any, list[bool]]:
            return {
                one.name: self._files[one.name].read_pages(one.keys or [], one.host_indices)
                for one in transfers
            }

        def batch_set_v2(self, transfers: Any, extra_info: Any = None) -> dict[Any, list[bool]]:
            return {
                one.name: self._files[one.name].put_pages(one.keys or [], one.host_indices)
                for one in transfers
            }

        def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
            return self.batch_get([key], [target_location])[0]

        def batch_get(
            self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
        ) -> list[Any]:
            pages = target_locations
            read = self._files[PoolName.KV].read
            are_read = self._timed("prefetch", read, keys, [memory_of(page) for page in pages])
            return [page if is_read else None for page, is_read in zip(pages, are_read)]

        def set(
            self, key: str, value: Any = None, target_location: Any = None, target_sizes: Any = None
        ) -> bool:
            return self.batch_set([key], [value])

        def batch_set(
            self,
            keys: list[str],
            values: Any = None,
            target_locations: Any = None,
            target_sizes: Any = None,
        ) -> bool:
            # The arrays must live until the copy is done.
            pages = [tensor.contiguous() for tensor in values]
            put = self._files[PoolName.KV].put
            return all(self._timed("backup", put, keys, [memory_of(page) for page in pages]))

        def clear(self) -> None:
            for files in self._files.values():
                self._pool.unlink_many([file.name for file in self._pool.list(files.prefix)])

        def _timed(self, what: str, move: Callable[..., list[bool]], keys: Any, where: Any) -> Any:
            start = time.perf_counter()
            are_good = move(keys, where)
            host = getattr(self, "mem_pool_host", None)
            stats = self._stats
            if stats is not None and host is not None and any(are_good):
                nr_pages, seconds = sum(are_good), time.perf_counter() - start
                nbytes = nr_pages * host.page_size * host.size_per_token
                getattr(stats, f"{what}_pgs").append(nr_pages)
                getattr(stats, f"{what}_bandwidth").append(nbytes / seconds / 1e9)
            return are_good

        def get_stats(self) -> Any:
            """What was moved since the last call; None if SGLang keeps no metrics."""
            stats = self._stats
            if stats is not None:
                self._stats = _new_stats()
            return stats

        def close(self) -> None:
            self._pool.close()

    return PgmapHiCacheStorage


def _new_stats() -> Any:
    from sglang.srt.observability.metrics_collector import StorageMetrics

    return StorageMetrics()


def __getattr__(name: str) -> Any:
    if name != "PgmapHiCacheStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    storage = globals()[name] = _make_storage()
    return storage
