"""One memory pool for all the processes of a machine.

A block that somebody reads cannot be reused, and a killed process gives everything back at once.

>>> import pgmap
>>> pool = pgmap.Pool.create(size="64MiB")
>>> pool.put("block/1", b"tokens")
>>> view = memoryview(pool.get("block/1"))
>>> pool.unlink("block/1")
>>> bytes(view)
b'tokens'
"""

from pgmap._errors import (
    BadName,
    Forked,
    Error,
    Exists,
    Held,
    IndexFull,
    MemoryFailed,
    NoMemory,
    NoSpace,
    NotFound,
    OutOfRange,
    OverQuota,
    OwnerGone,
    ReadOnly,
    SystemFailure,
    TimedOut,
)
from pgmap._native import (
    FileEvent,
    FileInfo,
    Pin,
    Pool,
    PoolInfo,
    Quota,
    Subscription,
    Writer,
    __version__,
)

__all__ = [
    "BadName",
    "Forked",
    "Error",
    "Exists",
    "FileEvent",
    "FileInfo",
    "Held",
    "IndexFull",
    "MemoryFailed",
    "NoMemory",
    "NoSpace",
    "NotFound",
    "OutOfRange",
    "OverQuota",
    "OwnerGone",
    "Pin",
    "Pool",
    "PoolInfo",
    "Quota",
    "ReadOnly",
    "Subscription",
    "SystemFailure",
    "TimedOut",
    "Writer",
    "__version__",
]
