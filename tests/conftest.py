"""What every test has: a clean second file system, and quiet libraries."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

from tests import memory_filesystem, quick_beam

quick_beam.remember()

# How fast examples are drawn depends on what else the machine does.
settings.register_profile("shortlist", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shortlist")


@pytest.fixture
def memory_root() -> Iterator[str]:
    """The root of an empty in-memory file system."""
    memory_filesystem.FILES.clear()
    yield "memory://bucket/output"
    memory_filesystem.FILES.clear()


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: object) -> Iterator[str]:
    """An output root, once on the local disk and once in memory."""
    memory_filesystem.FILES.clear()
    yield str(tmp_path) if request.param == "local" else "memory://bucket/output"
    memory_filesystem.FILES.clear()
