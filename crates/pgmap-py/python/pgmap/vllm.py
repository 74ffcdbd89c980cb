"""A secondary tier for vLLM's KV offloading.

Configured by ``module_path``, in the list of secondary tiers::

    {"type": "PgmapSecondaryTierManager", "module_path": "pgmap.vllm",
     "socket": "/run/pgmap/pool.sock"}

Other parameters: ``size`` and ``directory``, ``deadline``. The pool evicts the least recently used
chunks when a store needs room. A store and a load copy before they return: a memory copy is
what they cost.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pgmap import Exists
from pgmap._adapters import attach, require_version

__all__ = ["PgmapSecondaryTierManager", "require"]

if TYPE_CHECKING:
    PgmapSecondaryTierManager: Any

_PREFIX = b"vllm/"


def require() -> str:
    """vLLM's version; ImportError where it is missing or not known."""
    return require_version("vllm", "0.33", "0.34")


def _make_tier() -> type:
    require()
    from vllm.v1.kv_offload.base import LookupResult, Medium, RequestOffloadingContext
    from vllm.v1.kv_offload.tiering.base import JobResult, SecondaryTierManager

    def names_of(keys: Iterable[Any]) -> list[bytes]:
        return [_PREFIX + bytes(key).hex().encode() for key in keys]

    class PgmapSecondaryTierManager(SecondaryTierManager):
        """Chunks of the primary tier as files of a pool."""

        medium = Medium.CPU

        def __init__(
            self,
            offloading_spec: Any,
            primary_kv_view: memoryview,
            tier_type: str,
            backpressure_detector: Any = None,
            locality: Any = None,
            **config: Any,
        ) -> None:
            super().__init__(
                offloading_spec=offloading_spec,
                primary_kv_view=primary_kv_view,
                tier_type=tier_type,
                backpressure_detector=backpressure_detector,
            )
            self._bytes = primary_kv_view.cast("B")
            self._pool = attach("vllm", config)
            self._finished: list[Any] = []

        def lookup(self, key: Any, req_context: Any) -> Any:
            is_there = self._pool.exists(names_of([key])[0])
            return LookupResult.HIT if is_there else LookupResult.MISS

        def _chunks(self, job: Any) -> list[memoryview]:
            nbytes = self.block_size_bytes
            return [self._bytes[int(at) * nbytes :][:nbytes] for at in job.chunk_ids]

        def submit_store(self, job_metadata: Any) -> None:
            try:
                raised = self._pool.put_many(
                    names_of(job_metadata.keys), self._chunks(job_metadata), evictable=1
                )
                is_done = all(error is None or isinstance(error, Exists) for error in raised)
            except Exception:
                is_done = False
            self._finished.append(JobResult(job_id=job_metadata.job_id, success=is_done))

        def submit_load(self, job_metadata: Any) -> None:
            keys = list(job_metadata.keys)
            try:
                lengths = self._pool.read_many(names_of(keys), self._chunks(job_metadata))
            except Exception:
                lengths = [None] * len(keys)
            loaded = [key for key, length in zip(keys, lengths) if length == self.block_size_bytes]
            is_done = len(loaded) == len(keys)
            self._finished.append(
                JobResult(job_id=job_metadata.job_id, success=is_done, successful_keys=loaded)
            )

        def get_finished_jobs(self) -> Iterable[Any]:
            finished, self._finished = self._finished, []
            return finished

        def on_new_request(self, req_context: Any) -> Any:
            return RequestOffloadingContext()

        def drain_jobs(self) -> None:
            """Nothing is under way after a submit."""

        def shutdown(self) -> None:
            self._pool.close()

    return PgmapSecondaryTierManager


def __getattr__(name: str) -> Any:
    if name != "PgmapSecondaryTierManager":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    tier = globals()[name] = _make_tier()
    return tier
