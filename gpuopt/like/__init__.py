"""Other libraries' optimizers by their own names, signatures and defaults; each is an ordinary rule or chain.

What only concerns the other library's machinery (parameters, ``foreach``, ``fused``, masks, dtypes of state) is left out.
"""

from gpuopt.like import keras, mlx, optax, torch

__all__ = ["keras", "mlx", "optax", "torch"]
