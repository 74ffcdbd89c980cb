"""Exceptions, one class for each kind of error of the library."""


class Error(Exception):
    """A call failed. ``kind`` is a name for programs, ``errno`` the Linux error number."""

    kind: str = "error"
    errno: int = 0

    def __str__(self) -> str:
        # KeyError would show the repr of the message.
        return Exception.__str__(self)

    def __reduce__(self):
        return make, (self.kind, self.errno, str(self))


class NotFound(Error, KeyError):
    """No file has this name."""


class Exists(Error):
    """A file has this name already."""


class BadName(Error, ValueError):
    """Not a name that a pool can hold."""


class NoSpace(Error):
    """Not enough free frames, or only in too many pieces."""


class NoMemory(Error):
    """The system has no memory for frames that were free."""


class OverQuota(Error):
    """It would take more than a quota allows."""


class ReadOnly(Error):
    """The pool was connected read-only."""


class IndexFull(Error):
    """The pool holds as many files as its index has room for."""


class Held(Error):
    """A process still holds the frames."""


class OwnerGone(Error):
    """The owner is gone. Pins stay valid, calls do not work."""


class TimedOut(Error, TimeoutError):
    """The owner did not answer in time."""


class Forked(Error):
    """This process was forked from one that has the pool open: it must connect itself."""


class OutOfRange(Error, ValueError):
    """Bytes outside a file or a pin."""


class MemoryFailed(Error):
    """The memory under a file failed."""


class SystemFailure(Error):
    """A system call failed; ``errno`` says how."""


_CLASSES: dict[str, type[Error]] = {
    "not_found": NotFound,
    "exists": Exists,
    "bad_name": BadName,
    "no_space": NoSpace,
    "no_memory": NoMemory,
    "index_full": IndexFull,
    "over_quota": OverQuota,
    "read_only_client": ReadOnly,
    "held": Held,
    "owner_gone": OwnerGone,
    "timed_out": TimedOut,
    "forked": Forked,
    "out_of_range": OutOfRange,
    "memory_failed": MemoryFailed,
    "memory": MemoryFailed,
    "system": SystemFailure,
}


def make(kind: str, errno: int, message: str) -> Error:
    """The exception for an error of the library; kinds without a class of their own are ``Error``."""
    error = _CLASSES.get(kind, Error)(message)
    error.kind = kind
    error.errno = errno
    return error
