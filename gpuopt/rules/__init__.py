"""The optimizers, one a file: pure mathematics that names no library and no kernel.

Whatever public `Rule` a file of this folder defines is a rule of the package: `RULES`, the names in `gpuopt`, the command
line and the tests find it there.
"""

import importlib
import pkgutil

from gpuopt.rules.base import Array, Hyper, Rule, bounded

__all__ = ["OF_VECTORS", "RULES", "Array", "Hyper", "Rule", "bounded"]


def _found() -> dict[str, type[Rule]]:
    files = [file.name for file in pkgutil.iter_modules(__path__, f"{__name__}.")]
    modules = [importlib.import_module(file) for file in files if not file.rpartition(".")[2].startswith("_")]
    return {
        name: thing
        for module in modules
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, Rule) and thing is not Rule
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }


RULES: dict[str, type[Rule]] = _found()
"""Every rule of the package by name."""
OF_VECTORS: tuple[str, ...] = tuple(name for name, rule in RULES.items() if not rule().unfit((1,)))
"""Those of them that update leaves of one axis, as the biases of a network are."""
