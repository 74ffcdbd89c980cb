"""A pytest plugin: LMCache's own tests of an L2 adapter, run on pgmap's.

``python -m pytest -p pgmap_conformance LMCACHE/tests/v1/distributed/test_mock_l2_adapter.py``
"""

import lmcache.v1.distributed.l2_adapters.config as config
import lmcache.v1.distributed.l2_adapters.mock_l2_adapter as mock
from lmcache.v1.platform import torch_dev

from pgmap.lmcache import PgmapL2Adapter, require


def _adapter(wanted):
    return PgmapL2Adapter({"size": max(int(wanted.max_size_gb * (1 << 30)), 1 << 20)})


def pytest_configure(config):
    # The tests ask for a GPU, and use none.
    torch_dev.is_available = lambda: True


def pytest_report_header():
    return f"pgmap's adapter in place of the mock's, LMCache {require()}"


mock.MockL2Adapter = _adapter
config.MockL2AdapterConfig = mock.MockL2AdapterConfig
