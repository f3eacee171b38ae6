"""Settings and fixtures that all tests share."""

import os
from collections.abc import Iterator

import pytest

pytest.register_assert_rewrite("spaces")

import spaces
from hypothesis import settings
from spaces import Space

# An emulator of CUDA that offers a second device lets every test run on one that is not the current device.
if os.environ.get("CUDASIM") == "1":
    os.environ.setdefault("CUDASIM_DEVICES", "2")

settings.register_profile("local", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")


@pytest.fixture(params=["numpy", "array_api_strict", "cupy"])
def space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """Each array library in turn; of CuPy the last device, which with several is not the current one."""
    yield from spaces.opened(request.param)


@pytest.fixture(params=["numpy", "cupy"])
def fused_space(request: pytest.FixtureRequest) -> Iterator[Space]:
    """The libraries that have a fused engine."""
    yield from spaces.opened(request.param)


@pytest.fixture
def cupy_space() -> Iterator[Space]:
    """CuPy alone."""
    yield from spaces.opened("cupy")
