"""What surrounds a rule: decay, clipping, constraints, averages; and `chain`, which puts all together.

Whatever public `Transform` a file of this folder defines is found: `TRANSFORMS`, and the names in `gpuopt`.
"""

import importlib
import pkgutil

from gpuopt.transforms.base import Transform
from gpuopt.transforms.chain import Chain, chain

__all__ = ["TRANSFORMS", "Chain", "Transform", "chain"]


def _found() -> dict[str, type[Transform]]:
    modules = [importlib.import_module(file.name) for file in pkgutil.iter_modules(__path__, f"{__name__}.")]
    return {
        name: thing
        for module in modules
        for name, thing in vars(module).items()
        if isinstance(thing, type) and issubclass(thing, Transform) and thing is not Transform
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }


TRANSFORMS: dict[str, type[Transform]] = _found()
"""Every transform of the package by name."""
