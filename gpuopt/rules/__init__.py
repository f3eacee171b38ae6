"""The optimizers, one a file: pure mathematics that names no library and no kernel.

Whatever public `Rule` a file of this folder defines is a rule of the package: `RULES`, the names in `gpuopt`, the command
line and the tests find it there.
"""

from gpuopt.rules.base import Array, Hyper, Rule, bounded, classes_in

__all__ = ["OF_VECTORS", "RULES", "Array", "Hyper", "Rule", "bounded"]


RULES: dict[str, type[Rule]] = classes_in(__path__, __name__, Rule)
"""Every rule of the package by name."""
OF_VECTORS: tuple[str, ...] = tuple(name for name, rule in RULES.items() if not rule().unfit((1,)))
"""Those of them that update leaves of one axis, as the biases of a network are."""
