"""What a file or a network may ask for: the memory that is free here, as the system, a container or a limit says it."""

from pathlib import Path
from typing import Any

import pytest

from gpuopt import limits
from gpuopt.rules import RULES
from gpuopt.training import Config, UsageError
from gpuopt.training.preparing import _bytes_a_parameter

GIB = 1 << 30
STAT = "anon 5\ninactive_file {0}\nactive_file {0}\nslab_reclaimable {0}\n"

# What stands in a container's folders, and what is free.
GROUPS: dict[str, tuple[dict[str, Any], float]] = {
    "version 2": ({"memory.max": 4 * GIB, "memory.current": GIB}, 3 * GIB),
    "version 2, of which files are kept": (
        {"memory.max": 4 * GIB, "memory.current": 4 * GIB, "memory.stat": STAT.format(GIB)},
        3 * GIB,
    ),
    "version 2 without a limit": ({"memory.max": "max", "memory.current": GIB}, 99 * GIB),
    "version 1": ({"memory/memory.limit_in_bytes": 4 * GIB, "memory/memory.usage_in_bytes": GIB}, 3 * GIB),
    "version 1, of which files are kept": (
        {
            "memory/memory.limit_in_bytes": 4 * GIB,
            "memory/memory.usage_in_bytes": 4 * GIB,
            "memory/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\ntotal_active_file {GIB}\n",
        },
        2 * GIB,
    ),
    "version 1 without a limit": (
        {"memory/memory.limit_in_bytes": 2**63 - 4096, "memory/memory.usage_in_bytes": GIB},
        99 * GIB,
    ),
    "nothing": ({}, 99 * GIB),
    "nonsense": ({"memory.max": "\0", "memory.current": "", "memory.stat": "a b c"}, 99 * GIB),
}


@pytest.mark.parametrize(("files", "expected"), GROUPS.values(), ids=GROUPS)
def test_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, Any], expected: float
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    found = [bound for folder in limits._groups() for bound in limits._of_group(folder)]
    assert min([99 * GIB, *found]) == expected


@pytest.mark.parametrize("kind", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_memory_under_a_limit(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    resource = pytest.importorskip("resource")
    asked = getattr(resource, kind)
    before = limits.available()
    limit = 1 << 36
    monkeypatch.setattr(
        resource, "getrlimit", lambda one: (limit, limit) if one == asked else (resource.RLIM_INFINITY,) * 2
    )
    assert 0 < limits.available() <= min(before * 1.5, limit)
    limit = 1
    assert limits.available() == 0


@pytest.mark.parametrize("rule", ["SGD", "Adam", "LBFGS"])
def test_a_network_is_refused_by_what_its_optimizer_keeps(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    from gpuopt.training.preparing import prepared

    each = _bytes_a_parameter(RULES[rule]())
    assert each >= {"SGD": 24, "Adam": 32, "LBFGS": 100}[rule]
    config = Config(hidden=(1000, 1000), optimizer=rule, batch_size=10, device="cpu")
    monkeypatch.setattr("gpuopt.training.preparing.available", lambda: 0.9 * each * 1_000_000)
    with pytest.raises(UsageError, match=r"--hidden 1000,1000: .* parameters take about 0\.\d GiB to train"):
        prepared(config)
