"""What is written down of all rules in files that cannot look for themselves: ``python tests/derived.py`` writes it.

Type checkers read the names that `gpuopt` exports, people read the table in docs/rules.md. `test_project.py` compares.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import conventions
from conformance import ROWS

import gpuopt
from gpuopt.rules import RULES
from gpuopt.rules.slots import is_number, starts
from gpuopt.transforms import TRANSFORMS

MARK = "<!-- `nox -s derive` writes this table -->\n"
HYPER = "A hyperparameter: a number, or a schedule, a function from the step to a number."
ROOT = Path(__file__).parent.parent
PACKAGE = Path(gpuopt.__file__).parent  # an installed one has no sources beside the tests


def exports() -> str:
    """Imports for type checkers."""
    found = RULES | TRANSFORMS
    modules = sorted({thing.__module__ for thing in found.values()})
    imports = [f"    from {module} import {', '.join(_sorted(found, module))}" for module in modules]
    names = [f'        "{name}",' for name in _sorted(found)]
    return "\n".join([*imports, "", "    __all__ += [", *names, "    ]", ""])


def table() -> str:
    """A row for each rule."""
    lines = ["| rule | hyperparameters | state | what it is |", "| --- | --- | --- | --- |"]
    for name, rule in RULES.items():
        made = rule()
        hyperparameters = ", ".join(f"`{h}={getattr(made, h)!r}`" for h in made.hyperparameters())
        arrays = [name for name, start in starts(made.slots).items() if not is_number(start)]
        counts = sorted({len(arrays), *(len(row.slots) for row in ROWS if row.rule is rule)})
        doc = (rule.__doc__ or "").partition("\n")[0].replace("|", r"\|")
        lines.append(f"| `{name}` | {hyperparameters} | {' or '.join(map(str, counts))} | {doc} |")
    return "\n".join([*lines, ""])


def reference() -> str:
    """The sections on rules and transforms in the reference."""
    directive = ".. autosummary::\n   :toctree: generated\n   :nosignatures:\n"
    rules = [*sorted(RULES), "Rule", "bounded"]
    transforms = ["chain", *sorted(TRANSFORMS), "Transform"]
    lines = ["Rules\n-----\n", directive, *(f"   {name}" for name in rules), ""]
    lines += [".. py:data:: Hyper\n", f"   {HYPER}\n"]
    lines += ["Transforms\n----------\n", directive, *(f"   {name}" for name in transforms), "", ""]
    return "\n".join(lines)


# By file: the lines between which it stands, and what it is.
DERIVED: dict[str, tuple[str, str, Callable[[], str]]] = {
    "gpuopt/public.py": ("if TYPE_CHECKING:  # `nox -s derive` writes this\n", "else:\n", exports),
    "docs/conventions.md": (MARK, "<!-- end of the table -->\n", conventions.table),
    "docs/rules.md": (MARK, "<!-- end of the table -->\n", table),
    "docs/reference/index.rst": (".. `nox -s derive` writes the names from here\n\n", ".. to here\n\n", reference),
}


def path(file: str) -> Path:
    """Where a file lies, of the package that is imported."""
    return PACKAGE.parent / file if file.startswith("gpuopt/") else ROOT / file


def current(file: str) -> tuple[str, str]:
    """The text of a file, and what it should be."""
    text = path(file).read_text(encoding="utf-8")
    first, last, derive = DERIVED[file]
    before, _, rest = text.partition(first)
    return text, f"{before}{first}{derive()}{last}{rest.partition(last)[2]}"


def _sorted(found: Mapping[str, type], module: str | None = None) -> list[str]:
    names = [name for name, thing in found.items() if module in {None, thing.__module__}]
    return sorted(names, key=lambda name: (not name.isupper(), name))


if __name__ == "__main__":
    for name in DERIVED:
        old, new = current(name)
        if old != new:
            path(name).write_text(new, encoding="utf-8")
