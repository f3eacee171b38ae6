"""One optimizer over many processes, with the same bits for any number of them.

MPI and NCCL are imported when an optimizer is made with a communicator, not before.
"""

from gpuopt.distributed.agreement import RankError
from gpuopt.distributed.optimizer import Optimizer
from gpuopt.distributed.sums import tree_sum

__all__ = ["Optimizer", "RankError", "tree_sum"]
