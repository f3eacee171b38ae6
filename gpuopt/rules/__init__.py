"""The optimizers, one a file: pure mathematics that names no library and no kernel."""

from gpuopt.rules.adagrad import AdaGrad
from gpuopt.rules.adam import Adam
from gpuopt.rules.base import Array, Hyper, Rule, bounded
from gpuopt.rules.rmsprop import RMSProp
from gpuopt.rules.sgd import SGD

RULES: dict[str, type[Rule]] = {rule.__name__: rule for rule in (SGD, AdaGrad, RMSProp, Adam)}

__all__ = ["RULES", "SGD", "AdaGrad", "Adam", "Array", "Hyper", "RMSProp", "Rule", "bounded"]
