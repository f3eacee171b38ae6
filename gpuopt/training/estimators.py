"""The trainer as scikit-learn's estimators: for its pipelines, its search of parameters, its validation. It need not be there."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from gpuopt.errors import UsageError
from gpuopt.suggest import did_you_mean
from gpuopt.training.applied import Model, load_model
from gpuopt.training.config import Config
from gpuopt.training.run import train

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["PerceptronClassifier", "PerceptronRegressor"]


class Estimator:
    """What both have in common: the keywords are the options of `Config`, checked when it is fitted.

    Attributes
    ----------
    model_ : Model
        Once it is fitted.
    """

    _task = ""
    model_: Model

    def __init__(
        self, hidden: tuple[int, ...] = (128,), epochs: int | None = None, standardize: bool = True, **options: Any
    ):
        self.__dict__ |= {"hidden": hidden, "epochs": epochs, "standardize": standardize, **options}

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """The options by name."""
        return {name: value for name, value in vars(self).items() if not name.endswith("_") and name[0] != "_"}

    def set_params(self, **options: Any) -> Self:
        """Change options; ValueError for one that `Config` has not."""
        self._expect_known(options)
        self.__dict__ |= options
        return self

    def _expect_known(self, options: Mapping[str, Any]) -> None:
        known = [
            field.name for field in dataclasses.fields(Config) if field.init and field.name not in {"data", "task"}
        ]
        for name in options:
            if name not in known:
                raise ValueError(f"{type(self).__name__}: {name}: no such option{did_you_mean(name, known)}")

    def fit(self, x: Any, y: Any) -> Self:
        """Train on arrays or data frames; nothing of the run is kept but the model.

        Raises
        ------
        UsageError
            As `gpuopt.training.train`.
        ValueError
            For an option that `Config` has not.
        """
        self._expect_known(self.get_params())
        config = Config(**{"task": self._task, **self.get_params()})
        with tempfile.TemporaryDirectory() as folder:
            train(config, data=(x, y), out=f"{folder}/run", report=False)
            self.model_ = load_model(f"{folder}/run")
        return self

    def predict(self, x: Any) -> NDArray[Any]:
        """As `Model.predict`."""
        return self._fitted().predict(x)

    @property
    def n_features_in_(self) -> int:
        """How many features the samples of `fit` had."""
        return len(self._fitted().features)

    @property
    def feature_names_in_(self) -> NDArray[Any]:
        """The columns of the data frame of `fit`; AttributeError if there was none."""
        if self._fitted().prepared.columns is None:
            raise AttributeError(f"{type(self).__name__}: was fitted to arrays, which have no names")
        return np.array(self.model_.features, object)

    def _fitted(self) -> Model:
        if self.__sklearn_is_fitted__():
            return self.model_
        raise _not_fitted()(f"{type(self).__name__}: is not fitted yet; expected fit(x, y) first")

    def __sklearn_is_fitted__(self) -> bool:
        return "model_" in vars(self)

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, RegressorTags, Tags, TargetTags

        classifies = self._task == "classification"
        return Tags(
            estimator_type="classifier" if classifies else "regressor",
            target_tags=TargetTags(required=True, multi_output=not classifies),
            classifier_tags=ClassifierTags() if classifies else None,
            regressor_tags=None if classifies else RegressorTags(),
            input_tags=InputTags(),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"


@functools.cache
def _not_fitted() -> type[UsageError]:
    """The error of a prediction before `fit`: scikit-learn's, too, where that is installed."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return UsageError
    return type("NotFittedError", (UsageError, NotFittedError), {})


class PerceptronClassifier(Estimator):
    """A multilayer perceptron that predicts classes.

    Parameters
    ----------
    hidden : tuple of int
        Units of the hidden layers.
    epochs : int, optional
        Default: as many as it takes for 2,000 steps.
    standardize : bool
        Bring features to mean 0 and standard deviation 1.
    **options
        All others of `gpuopt.training.Config`.

    Examples
    --------
    >>> classifier = PerceptronClassifier(hidden=(8,), epochs=300, lr=0.01)
    >>> classifier.fit([[1.0], [2.0], [3.0], [4.0]], ["low", "low", "high", "high"]).predict([[0.5], [5.0]])
    array(['low', 'high'], dtype='<U4')
    """

    _task = "classification"

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels, sorted."""
        classes = self._fitted().classes
        assert classes is not None
        return classes

    def predict_proba(self, x: Any) -> NDArray[Any]:
        """As `Model.predict_proba`."""
        return self._fitted().predict_proba(x)

    def score(self, x: Any, y: Any) -> float:
        """The accuracy."""
        return self._fitted().evaluate(x, y)["accuracy"]


class PerceptronRegressor(Estimator):
    """A multilayer perceptron that predicts numbers; parameters as those of `PerceptronClassifier`.

    Examples
    --------
    >>> regressor = PerceptronRegressor(hidden=(8,), epochs=300, lr=0.01)
    >>> x = [[0.0], [1.0], [2.0], [3.0]]
    >>> bool(regressor.fit(x, [0.0, 2.0, 4.0, 6.0]).score(x, [0.0, 2.0, 4.0, 6.0]) > 0.99)
    True
    """

    _task = "regression"

    def score(self, x: Any, y: Any) -> float:
        """The coefficient of determination R2."""
        return self._fitted().evaluate(x, y)["r2"]
