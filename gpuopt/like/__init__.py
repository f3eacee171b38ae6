"""Other libraries' optimizers by their own names, signatures and defaults; each is an ordinary rule or chain.

Arguments that do not change the mathematics (parameters, ``foreach``, ``fused``, masks, dtypes of state) are left out.
"""

from gpuopt.like import keras, mlx, optax, torch

__all__ = ["keras", "mlx", "optax", "torch"]
