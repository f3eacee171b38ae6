"""The same optimizer over many processes: the state shared out among them, the same bits for any number.

Nothing of MPI or NCCL is imported before an optimizer is made with a communicator.
"""

from gpuopt.distributed.agreement import RankError
from gpuopt.distributed.optimizer import Optimizer
from gpuopt.distributed.sums import tree_sum

__all__ = ["Optimizer", "RankError", "tree_sum"]
