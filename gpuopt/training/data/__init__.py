"""Data to train on: the built-in spiral, files, arrays and data frames.

Everything here happens on the host, with NumPy. A training set that gets through has no surprises left: inputs are finite
float32 of shape (samples, features), targets are class indices or finite float32. What was learned to bring it there goes
with the model.
"""

from gpuopt.training.data.dataset import Dataset, Samples, Task, spiral
from gpuopt.training.data.loading import Reading, from_arrays, load

__all__ = ["Dataset", "Reading", "Samples", "Task", "from_arrays", "load", "spiral"]
