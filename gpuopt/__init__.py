"""Gradient-descent optimizers for the arrays people already hold: NumPy on a CPU, CuPy on an NVIDIA GPU."""

import importlib

__version__ = "0.1.0"

TYPE_CHECKING = False  # in place of typing.TYPE_CHECKING, whose import is slow
if TYPE_CHECKING:
    from gpuopt.public import *
    from gpuopt.public import __all__ as __all__
else:

    def __getattr__(name: str) -> object:
        """Import a module or a public name at its first use.

        So ``import gpuopt`` is fast, and the command `gpuopt` handles Ctrl-C before NumPy and the rest are imported.
        """
        if name.startswith("_") and name != "__all__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = f"{__name__}.{name}"
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name != module:  # a library that is not installed
                raise
        value = getattr(importlib.import_module("gpuopt.public"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__getattr__("__all__")})
