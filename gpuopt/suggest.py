"""Names in messages: lists of known names, and the nearest one to a misspelling."""

from __future__ import annotations

import functools
import inspect
import itertools
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from inspect import BoundArguments, Signature
    from typing import Any

__all__ = ["absent", "bound", "called_rightly", "did_you_mean", "listed", "printable", "told_of_each"]

P = ParamSpec("P")
T = TypeVar("T")

MOST = 1000
"""Largest number of names that are searched for the nearest one: 100,000 would take seconds."""

SAME: tuple[str, ...] = (
    # Hyperparameters: torch.optim, Optax, Keras, MLX, papers
    "lr learning_rate rate alpha eta gamma step_size stepsize",
    "rho alpha decay decay_rate smoothing_constant discounting_factor beta2",
    "beta1 b1 betas beta",
    "beta2 b2 betas",
    "momentum mu heavy_ball mass beta beta1",
    "nesterov nesterov_momentum use_nesterov",
    "eps epsilon",
    "weight_decay wd l2",
    "limit max_norm max_value max_delta clip_norm clip_value clipnorm clipvalue",
    # Rules and transforms: papers, PyTorch, CIL, pylops
    "SGD Momentum MomentumSGD HeavyBall GradientDescent GD Nesterov NesterovMomentum NAG",
    "Adam AMSGrad AdamOptimizer",
    "LBFGS LBFGSB BFGS",
    "BarzilaiBorwein BB",
    "NonlinearCG CG ConjugateGradient",
    "Accelerate FISTA APGD",
    "SoftThreshold ISTA L1 L1Norm Lasso",
    "NonNegative NonNegativity Positivity",
    "Box Bounds Clip Projection",
    "ClipValue ClipGrad ClipGradValue",
    "ClipGlobalNorm ClipGradNorm",
    "EMA Average Polyak SWA",
    "Scale LearningRates",
    # Schedules: torch.optim.lr_scheduler, Optax, Keras
    "constant constant_schedule ConstantLR",
    "inverse_time inverse_time_decay InverseTimeDecay",
    "exponential exponential_decay ExponentialLR ExponentialDecay",
    "step step_decay StepLR stairs staircase",
    "piecewise piecewise_constant piecewise_constant_schedule PiecewiseConstantDecay MultiStepLR",
    "polynomial polynomial_schedule polynomial_decay PolynomialLR PolynomialDecay linear linear_schedule",
    "linear_warmup warmup LinearLR warmup_constant_schedule",
    "cosine cosine_decay cosine_decay_schedule CosineAnnealingLR CosineAnnealingWarmRestarts CosineDecay sgdr",
    "plateau ReduceLROnPlateau reduce_on_plateau",
    "one_cycle OneCycleLR onecycle cosine_onecycle_schedule",
    "join join_schedules SequentialLR chain",
    # Their arguments
    "initial init_value initial_learning_rate peak value lr learning_rate",
    "peak max_lr peak_value",
    "final end_value eta_min end_learning_rate min_lr alpha",
    "steps decay_steps total_steps transition_steps T_max total_iters num_steps",
    "warmup warmup_steps",
    "every step_size transition_steps decay_steps",
    "factor gamma",
    "decay decay_rate gamma",
    "boundaries milestones boundaries_and_scales",
    "cycles T_0 restarts",
    "growth T_mult t_mul",
    # Options of the command line
    "epochs num_epochs iterations max_iter",
    "batch_size batch",
    "optimizer opt solver rule",
    "hidden hidden_layer_sizes layers",
    "seed random_state",
    "out output output_dir",
)
"""Synonyms, one line for each meaning, our word first. A word may have several meanings."""


def did_you_mean(
    given: object, known: Iterable[str], shown: Callable[[str], str] = repr, *, likeness: float = 0.6
) -> str:
    """Return ``" (did you mean 'lr'?)"``, or "" if no known name is near.

    Parameters
    ----------
    given
        The unknown name.
    known
        The names there are, the likelier ones first.
    shown
        How to write a name.
    likeness
        Of a misspelling and a known name, at least, from 0 to 1.

    Examples
    --------
    >>> did_you_mean("learning_rate", ["lr", "momentum"])
    " (did you mean 'lr'?)"
    >>> did_you_mean("betas", ["lr", "beta1", "beta2", "eps"])
    " (did you mean 'beta1' or 'beta2'?)"
    >>> did_you_mean("--adagard", ["AdaGrad", "SGD"], shown=str)
    ' (did you mean AdaGrad?)'

    """
    names = _nearest(str(given), list(itertools.islice(known, MOST)), likeness)
    return f" (did you mean {' or '.join(map(shown, names))}?)" if names else ""


def absent(module: str, names: Sequence[str]) -> Callable[[str], Any]:
    """Return a ``__getattr__`` for a module whose error suggests the nearest of its names."""

    def unknown(name: str) -> Any:
        near = "" if name.startswith("_") else did_you_mean(name, names)
        raise AttributeError(f"module {module!r} has no attribute {name!r}{near}")

    return unknown


def bound(
    name: str,
    signature: Signature,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    names: Iterable[str] = (),
    more: str = "",
) -> BoundArguments:
    """Return the arguments of a call by name.

    Parameters
    ----------
    name, signature
        Of what is called.
    args, kwargs
        The arguments.
    names
        Those that a parameter ``**x`` takes.
    more
        End of the message where they do not fit.

    Raises
    ------
    TypeError
        If an argument is unknown, missing, too many, or given twice.

    """
    known = [own for own, parameter in signature.parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    is_open = not names and len(known) < len(signature.parameters)
    known += [own for own in names if own not in known]
    usage = f"usage: {name}({', '.join(known)}){more}"
    for argument in () if is_open else kwargs:
        if argument not in known:
            raise TypeError(f"{name}: unknown argument {argument!r}{did_you_mean(argument, known)}; {usage}")
    try:
        return signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TypeError(f"{name}: {error}; {usage}") from None


def called_rightly(name: str, more: str = "") -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Have a function, or an ``__init__``, refuse arguments that do not fit as `bound` does, under a name."""

    def decorated(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        own = [given for given in signature.parameters.values() if given.name != "self"]
        shown, first = signature.replace(parameters=own), len(signature.parameters) - len(own)

        @functools.wraps(function)
        def called(*args: P.args, **kwargs: P.kwargs) -> T:
            bound(name, shown, args[first:], kwargs, (), more)
            return function(*args, **kwargs)

        return called

    return decorated


def listed(names: Iterable[str], most: int = 20, shown: Callable[[str], str] = str) -> str:
    """Return names with commas between; of many the first, and how many more there are."""
    every = [*names]
    return ", ".join(map(shown, every[:most])) + (f" and {len(every) - most:,} more" if len(every) > most else "")


def told_of_each(names: list[str], what: str, most: int = 20) -> list[str]:
    """Return a line for each name, or if there are many of them one line for all.

    >>> told_of_each(["a", "b"], "missing")
    ['a: missing', 'b: missing']
    >>> told_of_each(["a"] * 1000, "missing")
    ['1,000 entries: missing, a among them']
    """
    if len(names) > most:
        return [f"{len(names):,} entries: {what}, {printable(names[0])} among them"]
    return [f"{printable(name, 1000)}: {what}" for name in names]


def printable(value: object, longest: int = 60) -> str:
    r"""A name or text from a file, for a terminal: without control characters, and not endlessly long.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value)[: longest + 1])
    return text if len(text) <= longest else f"{text[:longest]}..."


def _nearest(given: str, known: list[str], likeness: float) -> list[str]:
    from difflib import get_close_matches

    by_spelling: dict[str, str] = {}
    for name in known:
        by_spelling.setdefault(_plain(name), name)
    word = _plain(given)
    if word in by_spelling:
        return [by_spelling[word]]
    members = [name for name in known if _plain(name.rpartition(".")[2]) == word]  # as EMA.decay of a chain
    if members:
        return members[:3]
    same = [line for line in ([*map(_plain, line.split())] for line in SAME) if word in line]
    for chosen in ([line[0] for line in same], [name for line in same for name in line]):
        if found := [by_spelling[name] for name in dict.fromkeys(chosen) if name in by_spelling]:
            return found
    return [by_spelling[name] for name in get_close_matches(word, by_spelling, n=1, cutoff=likeness)]


def _plain(name: str) -> str:
    """Return a spelling without capitals, hyphens and underscores, for comparisons."""
    return name.lower().replace("_", "").replace("-", "")
