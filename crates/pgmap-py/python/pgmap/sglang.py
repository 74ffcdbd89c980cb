"""A storage backend for SGLang's hierarchical cache (HiCache).

Configured as a dynamic backend: ``--hicache-storage-backend dynamic`` and, as extra configuration::

    {"backend_name": "pgmap", "module_path": "pgmap.sglang", "class_name": "PgmapHiCacheStorage",
     "socket": "/run/pgmap/pool.sock"}

Other parameters: ``size`` and ``directory``, ``deadline``. The pool evicts the least recently used
pages when a store needs room.
"""

from typing import TYPE_CHECKING, Any

from pgmap import Exists
from pgmap._adapters import attach, require_version

__all__ = ["PgmapHiCacheStorage", "require"]

if TYPE_CHECKING:
    PgmapHiCacheStorage: Any

_PREFIX = "sglang/"
# What SGLang itself reads of the extra configuration of a dynamic backend.
_NOT_OURS = ("backend_name", "module_path", "class_name", "interface_v1")


def require() -> str:
    """SGLang's version; ImportError where it is missing or not known."""
    return require_version("sglang", "0.5.23", "0.6")


def _make_storage() -> type:
    require()
    from sglang.srt.mem_cache.hicache_storage import HiCacheStorage

    def memory_of(tensor: Any) -> tuple[int, int]:
        if not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise ValueError("a page is contiguous memory of the CPU")
        return tensor.data_ptr(), tensor.numel() * tensor.element_size()

    class PgmapHiCacheStorage(HiCacheStorage):
        """Pages of the host's cache as files of a pool."""

        def __init__(self, storage_config: Any, *_: Any, **__: Any) -> None:
            extra = dict(storage_config.extra_config or {})
            for name in _NOT_OURS:
                extra.pop(name, None)
            self._pool = attach("sglang", extra)
            # Ranks hold different parts of a page under one key; those of an MLA model the same.
            own = [storage_config.model_name or "", f"{storage_config.pp_rank}"]
            if not storage_config.is_mla_model:
                own.append(f"{storage_config.tp_rank}.{storage_config.tp_size}")
            self._own = _PREFIX + "@".join(own) + "@"

        def _names(self, keys: list[str]) -> list[str]:
            return [self._own + key for key in keys]

        def exists(self, key: str) -> bool:
            return self._pool.exists(self._own + key)

        def batch_exists(self, keys: list[str], extra_info: Any = None) -> int:
            return self._pool.exists_prefix(self._names(keys))

        def get(self, key: str, target_location: Any = None, target_sizes: Any = None) -> Any:
            return self.batch_get([key], [target_location])[0]

        def batch_get(
            self, keys: list[str], target_locations: Any = None, target_sizes: Any = None
        ) -> list[Any]:
            targets = [memory_of(tensor) for tensor in target_locations]
            lengths = self._pool.read_many(self._names(keys), targets)
            return [
                tensor if length == nbytes else None
                for tensor, length, (_, nbytes) in zip(target_locations, lengths, targets)
            ]

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
            places = [memory_of(page) for page in pages]
            raised = self._pool.put_many(self._names(keys), places, evictable=1)
            return all(error is None or isinstance(error, Exists) for error in raised)

        def clear(self) -> None:
            self._pool.unlink_many([file.name for file in self._pool.list(self._own)])

    return PgmapHiCacheStorage


def __getattr__(name: str) -> Any:
    if name != "PgmapHiCacheStorage":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    storage = globals()[name] = _make_storage()
    return storage
