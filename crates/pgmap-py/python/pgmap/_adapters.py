"""What the adapters for KV caches share: versions, parameters, the pool, names and locks."""

import contextlib
import hashlib
import importlib.metadata
import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Generic, TypeVar

from pgmap._errors import SystemFailure
from pgmap._native import Pool

Hold = TypeVar("Hold")

_MAX_NAME_BYTES = 255


def require_version(package: str, first: str, below: str) -> str:
    """The version of `package`, which must be there and be one that its adapter knows."""
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise ImportError(
            f"{package} is not installed: pgmap.{package} needs {package}>={first},<{below}"
        ) from None

    def parts(text: str) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", text)[:3]]

    if not parts(first) <= parts(version) < parts(below):
        raise ImportError(
            f"pgmap.{package} knows {package}>={first},<{below}, not {version}: "
            f"install one of those, or a newer pgmap"
        )
    return version


def attach(engine: str, parameters: dict[str, Any]) -> Pool:
    """The pool that the parameters name; what is left of them is an error."""
    rest = dict(parameters)
    socket, size = rest.pop("socket", None), rest.pop("size", None)
    directory, deadline = rest.pop("directory", None), rest.pop("deadline", 10.0)
    prefault = rest.pop("prefault", 2.0)
    if rest:
        raise ValueError(
            f"pgmap.{engine} has no parameter {', '.join(sorted(rest))}: "
            "use socket, or size and directory; deadline and prefault"
        )
    if (socket is None) == (size is None):
        raise ValueError(
            f"pgmap.{engine} needs socket (where a pool is served) or size (of a pool of its own)"
        )
    if socket is None:
        return Pool.create(size, directory=directory)
    pool = Pool.connect(socket, label=engine, deadline=deadline)
    if prefault > 0:
        # Without it (before Linux 5.14) pages are mapped as they are touched.
        with contextlib.suppress(SystemFailure):
            pool.prefault(deadline=prefault)
    return pool


def short_name(name: str, long_prefix: str) -> str:
    """`name`, or a digest of it below `long_prefix` where it is too long for a file's name."""
    if len(name) <= _MAX_NAME_BYTES and name.isascii():
        return name
    encoded = name.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return name
    return long_prefix + hashlib.sha256(encoded).hexdigest()


class Locked(Generic[Hold]):
    """Files that an engine has locked, each as often as it said so: a hold for each lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: dict[str, Hold] = {}
        # Of those that are locked more than once.
        self._more: dict[str, list[Hold]] = {}

    def add(self, names: Sequence[str], holds: Sequence[Hold | None]) -> None:
        """Locks those that have a hold."""
        with self._lock:
            for name, hold in zip(names, holds, strict=True):
                if hold is None:
                    continue
                if name in self._holds:
                    self._more.setdefault(name, []).append(hold)
                else:
                    self._holds[name] = hold

    def release(self, names: Iterable[str]) -> None:
        """Ends one lock of each that has one."""
        ended = []
        with self._lock:
            for name in names:
                more = self._more.get(name)
                if more is None:
                    ended.append(self._holds.pop(name, None))
                    continue
                ended.append(more.pop())
                if not more:
                    del self._more[name]
        # Dropped here: the last pin of a file that was unlinked makes a call.
        del ended

    def hold_of(self, name: str) -> Hold | None:
        """A hold of what is locked, whether it still has a name or not."""
        with self._lock:
            return self._holds.get(name)

    def __len__(self) -> int:
        with self._lock:
            return len(self._holds)

    def clear(self) -> None:
        with self._lock:
            held = self._holds, self._more
            self._holds, self._more = {}, {}
        del held
