"""The shape of the project: who may import whom, which names stand where, and what `import gpuopt` may load."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from conformance import ROWS
from derived import DERIVED, current
from formulas import MATRICES
from formulas import RULES as FORMULAS

import gpuopt
from gpuopt.rules import RULES

PACKAGE = Path(gpuopt.__file__).parent
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))

# Each layer and what it may import of gpuopt: beside itself, only what stands here.
LAYERS: dict[str, set[str]] = {
    "cached": set(),
    "arrays": set(),
    "nvrtc": set(),
    "diagnosis": {"nvrtc"},
    "backends": {"arrays", "cached", "diagnosis", "nvrtc"},
    "trees": {"cached"},
    "suggest": set(),
    "schedules": {"suggest"},
    "rules": {"arrays", "cached", "suggest"},
    "notebook": {"markup", "rules/base", "schedules"},
    "tuning": {"rules/base", "schedules", "suggest"},
    "groups": {"rules", "rules/base", "suggest", "trees"},
    "states": {"arrays", "engines", "rules/base", "schedules", "suggest", "tuning"},
    "transforms": {"cached", "rules/base"},
    "like": {"", "arrays", "functional", "optimizer", "transforms", "rules", "rules/base", "schedules", "suggest"},
    "engines": {"arrays", "cached", "nvrtc", "rules/base", "trees"},
    "advice": {"arrays"},
    "leaves": {"advice", "arrays", "engines", "lending", "rules/base", "trees"},
    "held": {"arrays", "engines", "leaves", "lending", "suggest"},
    "gradients": {"engines", "rules/base", "suggest"},
    "accumulation": {"arrays", "engines", "rules/base"},
    "stateful": {
        "accumulation",
        "arrays",
        "engines",
        "gradients",
        "groups",
        "held",
        "leaves",
        "rules/base",
        "states",
        "suggest",
        "tuning",
    },
    "optimizer": {
        "arrays",
        "engines",
        "gradients",
        "groups",
        "lending",
        "notebook",
        "rules/base",
        "stateful",
        "suggest",
        "tuning",
    },
    "functional": {"arrays", "engines", "groups", "leaves", "rules/base", "suggest", "trees"},
    "__main__": {"cli"},
    "lending": {"arrays"},
    "bounds": {"arrays", "rules/base", "transforms"},
    "minimization": {
        "arrays",
        "bounds",
        "engines",
        "groups",
        "leaves",
        "optimizer",
        "rules/base",
        "suggest",
        "transforms",
        "trees",
    },
    "files": set(),
    "tensorfile": {"arrays", "files"},
    "checkpoint": {"arrays", "optimizer", "stateful", "suggest", "tensorfile"},
    "distributed": {
        "",
        "arrays",
        "engines",
        "gradients",
        "groups",
        "leaves",
        "optimizer",
        "rules/base",
        "states",
        "suggest",
        "trees",
        "tuning",
    },
    "public": {
        "",
        "backends",
        "checkpoint",
        "engines",
        "functional",
        "gradients",
        "like",
        "minimization",
        "optimizer",
        "rules",
        "rules/base",
        "runs",
        "schedules",
        "suggest",
        "transforms",
        "transforms/base",
    },
    "check": {"arrays", "backends", "engines", "gradients", "optimizer", "rules"},
    "markup": set(),
    "pictures": {"markup"},
    "landscape": {"files", "markup", "optimizer", "pictures", "rules", "rules/base"},
    "errors": set(),
    "limits": {"errors"},
    "runs": {
        "arrays",
        "backends",
        "checkpoint",
        "errors",
        "files",
        "limits",
        "markup",
        "optimizer",
        "pictures",
        "rules",
        "rules/base",
        "schedules",
        "suggest",
        "tensorfile",
    },
    "training": {
        "",
        "arrays",
        "backends",
        "cached",
        "checkpoint",
        "diagnosis",
        "distributed",
        "errors",
        "files",
        "gradients",
        "limits",
        "markup",
        "notebook",
        "optimizer",
        "pictures",
        "rules",
        "rules/base",
        "runs",
        "schedules",
        "suggest",
        "tensorfile",
        "transforms",
        "transforms/base",
    },
    "cli": {
        "",
        "check",
        "backends",
        "checkpoint",
        "errors",
        "landscape",
        "markup",
        "optimizer",
        "pictures",
        "rules",
        "rules/base",
        "runs",
        "schedules",
        "suggest",
        "training",
    },
}

SHARED_BY_RULES = {"base", "formula", "hyper", "lifted", "pairs", "slots"}
"""Files of rules/ that are no optimizer."""

# Libraries that only these files may name: everything else goes through them.
CONFINED = {
    "cuda": {"nvrtc.py"},
    "cupy": {
        "arrays.py",
        "backends/base.py",
        "backends/discovery.py",
        "backends/reporting.py",
        "diagnosis.py",
        "distributed/mpi.py",
        "distributed/nccl.py",
        "engines/cuda/kernel.py",
        "engines/cuda/cache.py",
        "engines/cuda/lookup.py",
        "nvrtc.py",
    },
    "cupyx": {"arrays.py"},
    "cupy.cuda.nccl": {"distributed/nccl.py"},
    "cupy_backends": set(),
    "llvmlite": {"engines/cpu/machine.py"},
    "matplotlib": {"pictures.py"},
    "mpi4py": {"distributed/mpi.py"},
    "PIL": {"pictures.py"},
    "nicegui": {"runs/control/live/__main__.py", "runs/control/live/view.py"},
    "torch": {"like/_exchange.py"},
}

HEAVY = [
    "array_api_compat.numpy",
    "cupy",
    "llvmlite",
    "matplotlib",
    "mpi4py",
    "nicegui",
    "numba",
    "pandas",
    "rich",
    "safetensors",
    "torch",
    "typer",
]


@cache
def imports(module: Path) -> list[str]:
    """Every module that this file imports, anywhere in it, by its absolute name."""
    return list(_imports(module))


def _imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ["gpuopt", *module.parent.parts][: len(module.parts) + 1 - node.level] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            # `from package import module` imports the module, `from module import name` does not; of other libraries it is unknown.
            for alias in node.names:
                target = Path(*origin.split(".")[1:], alias.name)
                files = {target.with_suffix(".py"), target / "__init__.py"}
                is_module = origin.split(".")[0] == "gpuopt" and not files.isdisjoint(MODULES)
                yield f"{origin}.{alias.name}" if is_module or not origin.startswith("gpuopt") else origin


def layer(name: str) -> str:
    """The layer of an absolute module name of gpuopt; "" is the package itself. What all rules share is one of its own."""
    parts = name.split(".")[1:]
    return "rules/base" if parts in [["rules", name] for name in SHARED_BY_RULES] else "".join(parts[:1])


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_imports_run_downward(module: Path) -> None:
    own = layer(".".join(["gpuopt", *module.with_suffix("").parts]))
    if own in {"__init__", "__main__"}:
        return
    used = {layer(name) for name in imports(module) if name.split(".")[0] == "gpuopt"}
    allowed = LAYERS[own.split("/")[0]] | {own, f"{own}/base"}
    assert used <= allowed, f"{module} imports {sorted(used - allowed)}; the layer {own} may import {sorted(allowed)}"


@pytest.mark.parametrize("module", [m for m in MODULES if m != Path("cached.py")], ids=str)
def test_properties_are_behind_no_lock(module: Path) -> None:
    text = (PACKAGE / module).read_text()
    assert "@cached_property" not in text or "from gpuopt.cached import cached_property\n" in text
    assert "@functools.cached_property" not in text


def test_every_layer_is_described() -> None:
    guide = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text()
    described = re.findall(r"^\| `(\w+)(?:\.py|/)` \|", guide, re.MULTILINE)
    assert sorted(described) == sorted(LAYERS)


@pytest.mark.parametrize("module", [m for m in MODULES if m.parent == Path("rules")], ids=str)
def test_a_rule_imports_no_rule_but_those_it_derives_from(module: Path) -> None:
    if module.stem == "__init__":
        return
    own = ".".join(["gpuopt", *module.with_suffix("").parts])
    derived_from = {base.__module__ for rule in RULES.values() if rule.__module__ == own for base in rule.__mro__}
    others = {name for name in imports(module) if name.startswith("gpuopt.rules.") and layer(name) == "rules"}
    assert others <= derived_from


@pytest.mark.parametrize("library", CONFINED)
def test_libraries_stay_in_their_files(library: str) -> None:
    users = {m.as_posix() for m in MODULES if any(f"{name}.".startswith(f"{library}.") for name in imports(m))}
    assert users <= CONFINED[library]


def test_rules_files_registry_and_conformance_rows_are_the_same() -> None:
    files = {m.stem for m in MODULES if m.parent == Path("rules")} - {"__init__", *SHARED_BY_RULES}
    assert {rule.__module__.rpartition(".")[2] for rule in RULES.values()} == files
    assert {row.rule for row in ROWS} | {type(rule) for rule, _ in (FORMULAS | MATRICES).values()} == set(
        RULES.values()
    )
    for name, rule in RULES.items():
        assert rule.__name__ == name
        assert getattr(gpuopt, name) is rule
        assert name in gpuopt.__all__
        assert rule().at(0)["lr"] >= 0


@pytest.mark.parametrize("file", DERIVED)
def test_what_is_derived_from_the_rules_is_up_to_date(file: str) -> None:
    text, derived = current(file)
    assert text == derived, "`nox -s derive` writes it"


CORE = """
import sys
for name in ("matplotlib", "PIL", "rich", "typer", "pandas", "pyarrow", "nicegui", "cupy"):
    sys.modules[name] = None
import numpy as np
import gpuopt, gpuopt.like, gpuopt.training
gpuopt.Optimizer(np.ones(3), gpuopt.Adam()).step(np.ones(3))
opt = gpuopt.Optimizer(np.ones(3), gpuopt.Adam())
gpuopt.save("core.safetensors", opt)
gpuopt.load("core.safetensors", opt)
try:
    gpuopt.training.train(gpuopt.training.Config(epochs=2), out="run")
finally:
    from gpuopt.__main__ import main
    main()
"""


def test_the_core_needs_no_extra(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CORE],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"GPUOPT_REPORT": "0"},
    )
    assert run.stderr.splitlines() == [
        'gpuopt: the command needs the extra `train`, which is not installed; run `pip install "gpuopt[train]"`'
    ]
    assert run.returncode == 2


def test_pictures_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt import pictures

    monkeypatch.setattr(pictures, "_spare", {})
    for name in ("matplotlib", "matplotlib.ticker"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r'pictures need matplotlib.*`pip install "gpuopt\[train\]"`'):
        pictures.figure()


@pytest.mark.parametrize(
    ("code", "unwanted"), [("import gpuopt", {*HEAVY, "numpy"}), ("import gpuopt; gpuopt.Adam", {*HEAVY})]
)
def test_import_gpuopt_loads_nothing_heavy(code: str, unwanted: set[str]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", f"{code}; import json, sys; print(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not unwanted & set(json.loads(run.stdout))


def test_parts_of_the_package_need_no_import_of_their_own() -> None:
    code = "import gpuopt; gpuopt.training.load_model; gpuopt.distributed.Optimizer; gpuopt.like.torch.AdamW"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_is_there() -> None:
    assert set(gpuopt.__all__) <= set(dir(gpuopt))
    for name in gpuopt.__all__:
        assert getattr(gpuopt, name) is getattr(gpuopt, name)
    with pytest.raises(AttributeError, match=r"module 'gpuopt' has no attribute 'Adm'.*did you mean 'Adam'"):
        gpuopt.Adm  # type: ignore[attr-defined]  # noqa: B018
