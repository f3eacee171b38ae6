"""What surrounds a rule: decay, clipping, constraints, averages; and `chain`, which puts all together.

Whatever public `Transform` a file of this folder defines is found: `TRANSFORMS`, and the names in `gpuopt`.
"""

from gpuopt.rules.base import classes_in
from gpuopt.transforms.base import Transform
from gpuopt.transforms.chain import Chain, chain

__all__ = ["TRANSFORMS", "Chain", "Transform", "chain"]


TRANSFORMS: dict[str, type[Transform]] = classes_in(__path__, __name__, Transform)
"""Every transform of the package by name."""
