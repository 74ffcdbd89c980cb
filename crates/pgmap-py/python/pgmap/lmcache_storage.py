"""The storage plugin for LMCache in the engine's process: chunks are shown where they lie.

Configured in LMCache's file::

    local_cpu: false
    storage_plugins: ["pgmap"]
    extra_config:
      storage_plugin.pgmap.module_path: pgmap.lmcache_storage
      storage_plugin.pgmap.class_name: PgmapStorageBackend
      pgmap.socket: /run/pgmap/pool.sock

``pgmap.size`` (and ``pgmap.directory``) instead of ``pgmap.socket`` is a pool of this process;
``pgmap.deadline`` in seconds. What a chunk is (shapes, types, format) is the file's metadata.

A get copies nothing: the object's tensor is the pool's memory, pinned until the object and every
tensor made of it are gone. It is read-only. Where the engine's device is not the CPU, a get copies
into LMCache's own memory instead: kernels of a GPU read only what is registered with its driver.

The pool evicts the least recently used chunks that nobody holds when a put needs room.
"""

import functools
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pgmap import Exists, NotFound, Pin
from pgmap._adapters import Locked, attach, short_name
from pgmap.lmcache import memory_of, require

__all__ = ["PgmapStorageBackend", "require"]

if TYPE_CHECKING:
    PgmapStorageBackend: Any

_log = logging.getLogger(__name__)

_PREFIX = "lmcache-chunk/"
_LONG_PREFIX = "lmcache-chunk-long/"
_PARAMETERS = "pgmap."
_MAX_METADATA_BYTES = 256


def name_of(key: Any) -> str:
    """The file that a key's chunk is in."""
    return short_name(_PREFIX + key.to_string(), _LONG_PREFIX)


def encode(obj: Any) -> bytes:
    """What a chunk is, as metadata of its file."""
    shapes = [list(shape) for shape in obj.get_shapes()]
    dtypes = [str(dtype).removeprefix("torch.") for dtype in obj.get_dtypes()]
    text = json.dumps([obj.get_memory_format().name, shapes, dtypes], separators=(",", ":"))
    if len(text) > _MAX_METADATA_BYTES:
        raise ValueError(
            f"{len(shapes)} tensors need {len(text)} bytes of metadata; "
            f"a file has {_MAX_METADATA_BYTES}: store them as chunks of their own"
        )
    return text.encode()


def _make_backend() -> type:
    require()
    import torch
    from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj
    from lmcache.v1.storage_backend.abstract_backend import StoragePluginInterface

    nothing = torch.empty(0, dtype=torch.uint8)
    with warnings.catch_warnings():
        # torch warns once in a process of memory that is read-only, as that of a pin is.
        warnings.simplefilter("ignore")
        torch.frombuffer(b"\0", dtype=torch.uint8)

    class Pinned:
        """What LMCache takes for the allocator of objects that are pins."""

        def free(self, obj: Any, allocator_type: str | None = None) -> None:
            obj.invalidate()
            # Tensors made of it may live on, and keep the pin.
            obj.raw_data = nothing

    pinned = Pinned()

    # An engine has few kinds of chunks, and reads each of them for every get.
    @functools.lru_cache(maxsize=256)
    def parse(metadata: bytes) -> Any:
        """Format, shapes, types and size of a chunk; None if the file is none."""
        try:
            form, shapes, dtypes = json.loads(metadata)
            sizes = [torch.Size(shape) for shape in shapes]
            types = [getattr(torch, dtype) for dtype in dtypes]
            nbytes = sum(
                size.numel() * dtype.itemsize for size, dtype in zip(sizes, types, strict=True)
            )
            return (MemoryFormat[form], sizes, types, nbytes) if sizes else None
        except (ValueError, TypeError, KeyError, AttributeError):
            return None

    def decode(metadata: bytes, nbytes: int) -> Any:
        """What a chunk is; None if the file is no chunk of so many bytes."""
        parsed = parse(metadata)
        if parsed is None or parsed[3] != nbytes:
            return None
        form, sizes, types, _ = parsed
        return MemoryObjMetadata(
            shape=sizes[0],
            dtype=types[0],
            address=0,
            phy_size=nbytes,
            ref_count=1,
            fmt=form,
            shapes=list(sizes),
            dtypes=list(types),
        )

    class PgmapStorageBackend(StoragePluginInterface):
        """Chunks of LMCache as files of a pool."""

        def __init__(
            self,
            config: Any = None,
            metadata: Any = None,
            local_cpu_backend: Any = None,
            loop: Any = None,
            dst_device: str = "cpu",
        ) -> None:
            super().__init__(dst_device, config, metadata, local_cpu_backend, loop)
            if config is None:
                raise ValueError("PgmapStorageBackend needs LMCache's configuration")
            if config.local_cpu:
                raise ValueError(
                    "local_cpu: true would keep pinned chunks of the pool in a second cache: "
                    "set local_cpu: false"
                )
            self._is_copied = torch.device(dst_device).type != "cpu"
            extra = config.extra_config or {}
            self._pool = attach(
                "lmcache_storage",
                {
                    key.removeprefix(_PARAMETERS): value
                    for key, value in extra.items()
                    if key.startswith(_PARAMETERS)
                },
            )
            self._locked: Locked[tuple[Pin, bytes]] = Locked()
            self._is_closed = False

        def __str__(self) -> str:
            return "PgmapStorageBackend"

        def contains(self, key: Any, pin: bool = False) -> bool:
            return self.batched_contains([key], pin) == 1

        def batched_contains(self, keys: list[Any], pin: bool = False) -> int:
            names = [name_of(key) for key in keys]
            if not pin:
                return self._pool.exists_prefix(names)
            holds = list(itertools.takewhile(lambda hold: hold is not None, self._holds(names)))
            self._locked.add(names[: len(holds)], holds)
            return len(holds)

        def exists_in_put_tasks(self, key: Any) -> bool:
            return False

        def pin(self, key: Any) -> bool:
            return self.contains(key, pin=True)

        def unpin(self, key: Any) -> bool:
            name = name_of(key)
            self._locked.release([name])
            return self._pool.exists(name)

        def remove(self, key: Any, force: bool = True) -> bool:
            return self.batched_remove([key], force) == 1

        def batched_remove(self, keys: list[Any], force: bool = True) -> int:
            names = [name_of(key) for key in keys]
            if not force:
                names = [name for name in names if self._locked.hold_of(name) is None]
            return sum(self._pool.unlink_many(names))

        def batched_submit_put_task(
            self,
            keys: Sequence[Any],
            objs: list[Any],
            transfer_spec: Any = None,
            on_complete_callback: Callable[[Any], None] | None = None,
        ) -> None:
            if len(keys) != len(objs):
                raise ValueError(f"{len(keys)} keys for {len(objs)} objects")
            if self._is_closed:
                raise RuntimeError("PgmapStorageBackend is closed, or closing")
            raised = self._pool.put_many(
                [name_of(key) for key in keys],
                [memory_of(obj, obj.get_size()) for obj in objs],
                metadatas=[encode(obj) for obj in objs],
                evictable=1,
            )
            for key, error in zip(keys, raised, strict=True):
                if error is None and on_complete_callback is not None:
                    try:
                        on_complete_callback(key)
                    except Exception:
                        _log.exception("the callback of a put raised for %s", key)
            # What is there already has the same bytes.
            failed = [error for error in raised if error and not isinstance(error, Exists)]
            if failed:
                raise RuntimeError(f"{len(failed)} of {len(keys)} chunks: {failed[0]}")

        def _holds(self, names: Sequence[str]) -> list[tuple[Pin, bytes] | None]:
            """A pin of each chunk that is there, and what its file says that it is."""

            def hold(name: str, pin: Pin | None) -> tuple[Pin, bytes] | None:
                try:
                    # Names are made of contents: a file that has replaced it is the same chunk.
                    return None if pin is None else (pin, self._pool.metadata(name))
                except NotFound:
                    return None

            return [hold(*one) for one in zip(names, self._pool.get_many(names), strict=True)]

        def _object_of(self, pin: Pin, metadata: bytes) -> Any:
            """What LMCache sees of a chunk; None if the file is none, or there is no memory."""
            layout = decode(metadata, pin.nbytes)
            if layout is None:
                return None
            if not self._is_copied:
                # The tensor has the pin's buffer, and so the pin.
                return TensorMemoryObj(torch.frombuffer(pin, dtype=torch.uint8), layout, pinned)
            copy = self.get_allocator_backend().allocate(layout.shapes, layout.dtypes, layout.fmt)
            if copy is not None:
                pin.read_into(memory_of(copy, copy.get_size()))
            return copy

        def batched_get_blocking(self, keys: list[Any]) -> list[Any]:
            if self._is_closed:
                return [None] * len(keys)
            names = [name_of(key) for key in keys]
            # A chunk that was removed while it was locked has no name, and can still be read.
            holds = [
                hold or self._locked.hold_of(name)
                for name, hold in zip(names, self._holds(names), strict=True)
            ]
            return [None if hold is None else self._object_of(*hold) for hold in holds]

        def get_blocking(self, key: Any) -> Any:
            return self.batched_get_blocking([key])[0]

        async def batched_async_contains(
            self, lookup_id: str, keys: list[Any], pin: bool = False
        ) -> int:
            return self.batched_contains(keys, pin)

        async def batched_get_non_blocking(
            self, lookup_id: str, keys: list[Any], transfer_spec: Any = None
        ) -> list[Any]:
            objs = self.batched_get_blocking(keys)
            found = list(itertools.takewhile(lambda obj: obj is not None, objs))
            for obj in objs[len(found) :]:
                if obj is not None:
                    obj.ref_count_down()
            return found

        def get_allocator_backend(self) -> Any:
            if self.local_cpu_backend is None:
                raise RuntimeError("PgmapStorageBackend has no LocalCPUBackend to allocate from")
            return self.local_cpu_backend

        def close(self) -> None:
            if not self._is_closed:
                self._is_closed = True
                self._locked.clear()
                self._pool.close()

    return PgmapStorageBackend


def __getattr__(name: str) -> Any:
    if name != "PgmapStorageBackend":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    backend = globals()[name] = _make_backend()
    return backend
