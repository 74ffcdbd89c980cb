"""What the adapters for KV caches share."""

import pytest

from pgmap import SystemFailure, _adapters


class Attached:
    """A pool of another process that cannot be prefaulted, as before Linux 5.14."""

    def __init__(self) -> None:
        self.prefaulted: list[float] = []

    def connect(self, socket, *, label, deadline):
        self.socket, self.label, self.deadline = socket, label, deadline
        return self

    def prefault(self, *, deadline):
        self.prefaulted.append(deadline)
        raise SystemFailure("prefault: Operation not supported")


def test_an_engine_that_attaches_prefaults_as_long_as_it_is_told_to(monkeypatch):
    for parameters, seconds in [({}, [2.0]), ({"prefault": 0.5}, [0.5]), ({"prefault": 0}, [])]:
        pool = Attached()
        monkeypatch.setattr(_adapters, "Pool", pool)
        assert _adapters.attach("vllm", {"socket": "s", **parameters}) is pool
        assert (pool.socket, pool.label, pool.deadline) == ("s", "vllm", 10.0)
        assert pool.prefaulted == seconds


def test_a_parameter_that_there_is_not_is_named():
    with pytest.raises(ValueError, match=r"pgmap.vllm has no parameter prefalt: use .* prefault"):
        _adapters.attach("vllm", {"socket": "s", "prefalt": 1})
