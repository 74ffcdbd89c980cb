"""What the adapters for KV caches share: versions, parameters, and the pool."""

import importlib.metadata
import re
from typing import Any

from pgmap._native import Pool


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
    if rest:
        raise ValueError(
            f"pgmap.{engine} has no parameter {', '.join(sorted(rest))}: "
            "use socket, or size and directory; and deadline"
        )
    if (socket is None) == (size is None):
        raise ValueError(
            f"pgmap.{engine} needs socket (where a pool is served) or size (of a pool of its own)"
        )
    if socket is not None:
        return Pool.connect(socket, label=engine, deadline=deadline)
    return Pool.create(size, directory=directory)
