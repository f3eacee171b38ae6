"""The optimizers, one a file: pure mathematics that names no library and no kernel.

Each public `Rule` that a file of this folder defines is found by `RULES`, and so by the names in `gpuopt`, the command line and
the tests.
"""

from gpuopt.rules.base import Array, Hyper, Rule, bounded, classes_in

__all__ = ["OF_VECTORS", "RULES", "Array", "Hyper", "Rule", "bounded"]


RULES: dict[str, type[Rule]] = classes_in(__path__, __name__, Rule)
"""Every rule of the package by name."""
OF_VECTORS: tuple[str, ...] = tuple(name for name, rule in RULES.items() if not rule().unfit((1,)))
"""Names of the rules that take vectors, such as the biases of a network; Muon is not among them."""
