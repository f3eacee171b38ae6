"""The Python code in README.md, CONTRIBUTING.md and the pages runs as it stands there: each block after the first one of its document."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    f"docs/{path.name}"
    for path in (ROOT / "docs").glob("*.md")
    if path.stem not in {"callbacks", "processes"}  # tests/test_callbacks.py and test_distributed.py run these
)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text()
    first: dict[str, object] = {"__name__": document}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines_before = text[: block.start(1)].count("\n")
        names = dict(first)
        exec(compile("\n" * lines_before + block[1], ROOT / document, "exec"), names)  # noqa: S102
        first = names if len(first) == 1 else first


@pytest.mark.peers
@pytest.mark.parametrize("library", ["jax", "torch"])
@pytest.mark.parametrize("document", ["docs/porting.md", "docs/start.md"])
def test_code_with_other_libraries_runs(document: str, library: str) -> None:
    pytest.importorskip(library)
    blocks = re.findall(r"^```py\n(.*?)^```", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    for block in (block for block in blocks if f"import {library}\n" in block):
        exec(block, {"__name__": document})  # noqa: S102


MODULES = ["", "schedules", "like.torch", "like.optax", "like.keras", "like.mlx", "training", "distributed"]
WITHOUT_EXAMPLE = {"Hyper", "like", "schedules", "schedules.SCHEDULES"}
"""Modules, and names that are no objects with a docstring."""


def public_names() -> list[str]:
    """Every public name, as it stands after ``gpuopt.``."""
    found: list[str] = []
    for module in MODULES:
        names = importlib.import_module(f"gpuopt.{module}".rstrip(".")).__all__
        found += [f"{module}.{name}".lstrip(".") for name in names]
    return found


def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = (ROOT / "docs/reference/index.rst").read_text()
    listed = re.findall(r"^(?:   |\.\. py:data:: )([\w.]+)$", text, re.MULTILINE)
    assert sorted(listed) == sorted(set(public_names()) - {"like", "schedules"})  # whose members are listed


@pytest.mark.parametrize("name", sorted(set(public_names()) - WITHOUT_EXAMPLE))
def test_every_public_name_has_an_example(name: str) -> None:
    module, _, last = f"gpuopt.{name}".rpartition(".")
    assert ">>>" in (getattr(importlib.import_module(module), last).__doc__ or "")
