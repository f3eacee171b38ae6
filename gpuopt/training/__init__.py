"""Training: a network, data, a loop around an optimizer, and a run folder. ``gpuopt train`` on the command line."""

from gpuopt.errors import ExplodedError, GPUFailure, Interrupted, SavingError, UsageError
from gpuopt.runs.loop import Callback
from gpuopt.training.applied import Model, load_model
from gpuopt.training.config import Config
from gpuopt.training.data import Dataset, Samples, load, spiral
from gpuopt.training.estimators import PerceptronClassifier, PerceptronRegressor
from gpuopt.training.loop import Training
from gpuopt.training.model import Perceptron, initial_params
from gpuopt.training.result import Result
from gpuopt.training.run import resume, train
from gpuopt.training.team import Team

__all__ = [
    "Callback",
    "Config",
    "Dataset",
    "ExplodedError",
    "GPUFailure",
    "Interrupted",
    "Model",
    "Perceptron",
    "PerceptronClassifier",
    "PerceptronRegressor",
    "Result",
    "Samples",
    "SavingError",
    "Team",
    "Training",
    "UsageError",
    "initial_params",
    "load",
    "load_model",
    "resume",
    "spiral",
    "train",
]
