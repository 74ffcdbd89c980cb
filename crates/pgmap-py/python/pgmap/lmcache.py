"""The L2 adapter for LMCache's server mode.

Configured as a plugin::

    {"type": "plugin", "module_path": "pgmap.lmcache", "class_name": "PgmapL2Adapter",
     "adapter_params": {"socket": "/run/pgmap/pool.sock"}}

``adapter_params``: ``socket`` of a pool that is served, or ``size`` (and ``directory``) of one that
this process owns; ``deadline`` in seconds; ``evict``: ``"lmcache"`` (default) leaves eviction to
LMCache, which is notified of every key that the pool has; ``"pool"`` leaves it to the pool, which
evicts the least recently used that nobody has locked when a store needs room; ``segment``:
``"dram"`` (default), ``"cxl"`` or ``"storage"``, the kind of memory that the pool lies on.

:mod:`pgmap.lmcache_storage` is the plugin for LMCache in the engine's process.

A look-up locks by pinning: a locked object can be deleted by any process, and can still be loaded.
"""

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pgmap import Exists, Pin
from pgmap._adapters import Locked, attach, require_version, short_name

__all__ = ["PgmapL2Adapter", "require"]

if TYPE_CHECKING:
    PgmapL2Adapter: Any

_PREFIX = "lmcache/"
_LONG_PREFIX = "lmcache-long/"
_SEGMENTS = ("dram", "cxl", "storage")


def require() -> str:
    """LMCache's version; ImportError where it is missing or not known."""
    return require_version("lmcache", "0.5.6", "0.6")


def names_of(keys: Iterable[Any]) -> list[str]:
    """The files that the keys' objects are in. Keys too long for a name are known by a digest."""
    names = []
    head = tail = model = rank = group = salt = None
    for key in keys:
        # Mostly the keys of a call differ in their hash alone.
        if (
            key.model_name != model
            or key.kv_rank != rank
            or key.object_group_id != group
            or key.cache_salt != salt
        ):
            model, rank = key.model_name, key.kv_rank
            group, salt = key.object_group_id, key.cache_salt
            head, tail = f"{_PREFIX}{model}@{rank:x}@{group:x}@", f"@{salt}"
        names.append(short_name(f"{head}{key.chunk_hash.hex()}{tail}", _LONG_PREFIX))
    return names


def memory_of(obj: Any, nbytes: int) -> Any:
    """Where an object's bytes are."""
    address = getattr(obj, "data_ptr", 0)
    return (address, nbytes) if address else memoryview(obj.byte_array).cast("B")


def _make_adapter() -> type:
    require()
    from lmcache.lmcache_native import Bitmap
    from lmcache.v1.distributed import api
    from lmcache.v1.distributed.api import KeyEntry, KeyListPage, ObjectKey
    from lmcache.v1.distributed.internal_api import L2StoreResult
    from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface

    def key_of(name: str) -> Any:
        model_name, rank, group, chunk_hash, salt = name.removeprefix(_PREFIX).split("@")
        return ObjectKey(
            chunk_hash=bytes.fromhex(chunk_hash),
            model_name=model_name,
            kv_rank=int(rank, 16),
            object_group_id=int(group, 16),
            cache_salt=salt,
        )

    class PgmapL2Adapter(L2AdapterInterface):
        """Objects of LMCache as files of a pool."""

        def __init__(self, config: dict[str, Any], l1_memory_desc: Any = None) -> None:
            parameters = dict(config)
            evict = parameters.pop("evict", "lmcache")
            if evict not in ("lmcache", "pool"):
                raise ValueError(f"evict is 'lmcache' or 'pool', not {evict!r}")
            self._segment = parameters.pop("segment", "dram")
            if self._segment not in _SEGMENTS:
                raise ValueError(f"segment is one of {_SEGMENTS}, not {self._segment!r}")
            self._is_shared = "socket" in parameters
            # One priority for all: LMCache does not say which objects matter more.
            self._evictable = 1 if evict == "pool" else 0
            self._pool = attach("lmcache", parameters)
            self._size = self._pool.info().size
            super().__init__(self._size if evict == "lmcache" else 0)
            self._lock = threading.Lock()
            self._locked: Locked[Pin] = Locked()
            self._next_task = 0
            self._done: tuple[dict[int, Any], dict[int, Any], dict[int, Any]] = ({}, {}, {})
            flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
            self._events = [os.eventfd(0, flags) for _ in range(3)]
            self._is_announced = False

        def _found(self) -> tuple[list[Any], list[int]]:
            files = self._pool.list(_PREFIX)
            return [key_of(file.name) for file in files], [file.nbytes for file in files]

        def set_backend_identity(self, name: str, shared: bool = False) -> None:
            super().set_backend_identity(name, shared)
            if self._is_announced:
                return
            self._is_announced = True
            # Objects of an earlier server are counted, and evicted, as this server's own.
            keys, sizes = self._found()
            if keys:
                self._notify_keys_stored(keys, sizes)

        def register_listener(self, listener: Any) -> None:
            super().register_listener(listener)
            if not self._is_announced:
                return
            keys, sizes = self._found()
            if keys:
                listener.on_l2_keys_stored(keys, sizes)

        def _finish(self, kind: int, result: Any) -> int:
            with self._lock:
                task = self._next_task
                self._next_task += 1
                self._done[kind][task] = result
            os.eventfd_write(self._events[kind], 1)
            return task

        def get_store_event_fd(self) -> int:
            return self._events[0]

        def get_lookup_and_lock_event_fd(self) -> int:
            return self._events[1]

        def get_load_event_fd(self) -> int:
            return self._events[2]

        def submit_store_task(self, keys: list[Any], objects: list[Any]) -> int:
            sizes = [obj.get_size() for obj in objects]
            try:
                places = list(map(memory_of, objects, sizes))
                raised = self._pool.put_many(names_of(keys), places, evictable=self._evictable)
            except Exception as error:
                raised = [error] * len(keys)
            if any(raised):
                stored = [at for at, error in enumerate(raised) if error is None]
                keys, sizes = [keys[at] for at in stored], [sizes[at] for at in stored]
            if keys:
                self._notify_keys_stored(keys, sizes)
            # It is there already, with the same bytes.
            is_done = all(error is None or isinstance(error, Exists) for error in raised)
            return self._finish(0, L2StoreResult(is_done, sum(sizes)))

        def pop_completed_store_tasks(self) -> dict[int, Any]:
            with self._lock:
                done = dict(self._done[0])
                self._done[0].clear()
            return done

        def submit_lookup_and_lock_task(self, keys: list[Any], *_layout: Any) -> int:
            found = Bitmap(len(keys))
            names = names_of(keys)
            pins = self._pool.get_many(names)
            self._locked.add(names, pins)
            found.batched_set([at for at, pin in enumerate(pins) if pin is not None])
            return self._finish(1, found)

        def query_lookup_and_lock_result(self, task_id: int) -> Any:
            with self._lock:
                return self._done[1].pop(task_id, None)

        def submit_unlock(self, keys: list[Any]) -> None:
            self._locked.release(names_of(keys))

        def submit_load_task(self, keys: list[Any], objects: list[Any]) -> int:
            loaded = Bitmap(len(keys))
            names = names_of(keys)
            sizes = [obj.get_size() for obj in objects]
            targets = list(map(memory_of, objects, sizes))
            try:
                lengths = self._pool.read_many(names, targets)
            except Exception:
                lengths = [None] * len(keys)
            for at, length in enumerate(lengths):
                if length is None:
                    lengths[at] = self._read_locked(names[at], targets[at])
            done = [at for at, length in enumerate(lengths) if length == sizes[at]]
            if done:
                loaded.batched_set(done)
                self._notify_keys_accessed([keys[at] for at in done])
            return self._finish(2, loaded)

        def _read_locked(self, name: str, target: Any) -> int | None:
            """Reads what was deleted while it was locked."""
            pin = self._locked.hold_of(name)
            try:
                return None if pin is None else pin.read_into(target)
            except Exception:
                return None

        def query_load_result(self, task_id: int) -> Any:
            with self._lock:
                return self._done[2].pop(task_id, None)

        def delete(self, keys: list[Any]) -> None:
            names = names_of(keys)
            sizes = [0 if pin is None else pin.nbytes for pin in self._pool.get_many(names)]
            gone = [at for at, was_there in enumerate(self._pool.unlink_many(names)) if was_there]
            if gone:
                self._notify_keys_deleted([keys[at] for at in gone], [sizes[at] for at in gone])

        def list_l2_keys(
            self, model_name: str | None = None, page_size: int = 500, cursor: str | None = None
        ) -> Any:
            if page_size <= 0:
                raise ValueError(f"a page of {page_size} keys")
            prefix = _PREFIX if model_name is None else f"{_PREFIX}{model_name}@"
            files = [file for file in self._pool.list(prefix) if cursor is None or file.name > cursor]
            page = files[:page_size]
            entries = tuple(
                KeyEntry(key_of(file.name).to_encoded_object_key(), file.nbytes) for file in page
            )
            return KeyListPage(entries, page[-1].name if len(files) > page_size else None)

        def get_usage(self) -> Any:
            own = super().get_usage()
            if not self._is_shared:
                return own
            # The pool may be shared, so its own figure counts, not what this server stored.
            info = self._pool.info()
            return AdapterUsage(
                total_bytes_used=info.size - info.free,
                total_capacity_bytes=own.total_capacity_bytes,
                bytes_by_cache_salt=own.bytes_by_cache_salt,
            )

        def get_memory_tags(self) -> Any:
            # Asked for from 0.5.7 on, which has the types.
            segment = api.MemorySegment(self._segment)
            return api.MemoryTags(segment, api.MemoryResidency.LOCAL)

        def report_status(self) -> dict[str, Any]:
            status: dict[str, Any] = {"type": "PgmapL2Adapter", "locked_key_count": len(self._locked)}
            try:
                info = self._pool.info()
            except Exception as error:
                return {"is_healthy": False, "error": str(error), **status}
            return {
                "is_healthy": True,
                "stored_object_count": info.files,
                "current_size_bytes": info.live,
                "draining_bytes": info.draining,
                "max_capacity_bytes": info.size,
                **status,
            }

        def close(self) -> None:
            self._locked.clear()
            with self._lock:
                events, self._events = self._events, []
            for event in events:
                os.close(event)
            self._pool.close()

    return PgmapL2Adapter


def __getattr__(name: str) -> Any:
    if name != "PgmapL2Adapter":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    adapter = globals()[name] = _make_adapter()
    return adapter
