"""The Python code in README.md, CONTRIBUTING.md and the pages runs as it stands there, each document from top to bottom."""

import re
from pathlib import Path

import pytest

import gpuopt

ROOT = Path(__file__).parent.parent
PAGES = [f"docs/{name}.md" for name in ("index", "start", "schedules", "constraints", "own", "porting")]


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/model.md", "docs/own-loop.md", *PAGES])
def test_code_runs(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text()
    names: dict[str, object] = {"__name__": document}
    for block in re.finditer(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], ROOT / document, "exec"), names)  # noqa: S102


WITHOUT_EXAMPLE = {"BackendUnavailable", "CheckpointError", "Hyper", "State", "like", "schedules"}
"""Names whose use is shown where they come from."""


def test_every_public_name_has_a_place_in_the_reference() -> None:
    text = (ROOT / "docs/reference/index.rst").read_text()
    listed = set(re.findall(r"^(?:   |\.\. py:data:: )(\w+)$", text, re.MULTILINE))
    assert listed == set(gpuopt.__all__)


@pytest.mark.parametrize("name", sorted(set(gpuopt.__all__) - WITHOUT_EXAMPLE))
def test_every_public_name_has_an_example(name: str) -> None:
    assert ">>>" in (getattr(gpuopt, name).__doc__ or "")
