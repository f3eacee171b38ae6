"""The optimizer: parameters, their state, and one step for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from gpuopt import notebook, tuning
from gpuopt.arrays import dtype_of, place
from gpuopt.engines import storage
from gpuopt.engines.choice import ENGINES, Engine
from gpuopt.engines.interrupts import in_one_go
from gpuopt.engines.norms import DynamicScale, checked_scale
from gpuopt.gradients import Clip
from gpuopt.groups import Rules, shown
from gpuopt.rules.hyper import Count
from gpuopt.stateful import Nonfinite, Stateful, Turn
from gpuopt.suggest import called_rightly

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import SupportsFloat

    from gpuopt.engines.storage import Precision, Stochastic
    from gpuopt.rules.base import Rule
    from gpuopt.rules.hyper import Hyper

__all__ = ["NONFINITE", "Nonfinite", "Optimizer"]

OWN: Any = object()
"""Default of `step`: take the ``.grad`` of the parameters."""
NONFINITE: tuple[Nonfinite, ...] = ("ignore", "skip", "raise")


class Optimizer(Stateful):
    """Parameters, their state, and a step that updates them in place.

    Parameters
    ----------
    params
        Arrays of float32, float64, complex64, complex128, float16 or bfloat16 in any nesting of dicts, lists and tuples
        (or one bare array). They are updated in place, so they must be writable and must not share memory (of libraries
        other than NumPy and CuPy only the same array twice is noticed). Tensors of torch lend their memory:
        ``model.parameters()`` will do.
    rule
        One rule, or several by glob: ``{"*.b": SGD(lr=0.1), "*": Adam()}``. A leaf gets the rule of the first
        pattern that matches its dotted path, such as ``dense.b``. None in place of a rule freezes the leaves of a
        pattern, ``{"encoder.*": None, "*": Adam()}``: they stay as they are and have no state, and nobody looks at what
        is given as their gradients, which may be None.
    engine
        "auto" fuses the update of NumPy and CuPy arrays that fill their memory without gaps, and runs everything else
        on the arrays themselves; "array" does that for all of them; "fused" refuses what cannot be fused.
    clip
        How gradients are clipped: `clip_by_value`, `clip_by_norm` or `clip_by_global_norm`.
    nonfinite
        What a step does if a gradient has a NaN or an infinity. "ignore": what the formulas say. "skip": it changes
        nothing, but counts as a step, for schedules and for Adam's bias correction too. "raise": it changes nothing and
        raises FloatingPointError; a GPU is not waited for, there the error comes with one of the next steps, which
        change nothing either, and ``steps`` is set back.
    every
        How many calls of `step` make one update, by the mean of their gradients (Optax's ``MultiSteps``). Each call adds to
        sums that are a part of the state, one array like the parameter; the last one updates, by a mean
        that takes another such array. A gradient of None counts
        as zeros, and a leaf that got none but None is left alone. ``clip`` and ``nonfinite`` look at the mean: with a bad
        gradient the update is left out, or raises, and the gradients with it are dropped. ``steps`` counts updates.
    precision
        Of leaves of float16 or bfloat16, with which is computed in float32. "state32" keeps the state in float32, "param" in
        the leaf's own dtype; both round to nearest. "split" keeps the other 16 bits of a bfloat16 leaf beside it, so that it
        follows the float32 trajectory to the bit; "stochastic", or `Stochastic` with a seed, rounds at random. The state is
        float32 in both.
    scale
        By what the loss was multiplied, so that small gradients do not vanish in 16 bits: a number, or a `DynamicScale`, that
        falls when a gradient is not finite, in a step that then changes nothing (as by ``nonfinite="skip"``), and grows after
        many good ones. Gradients are divided by it before anything else, also before they are clipped.

    Raises
    ------
    TypeError
        If a leaf is no array of these, or not one that ``precision`` is for; a rule no `Rule`, or its update not what an
        engine can run.
    ValueError
        If a leaf is read-only or shares memory with another one, if a leaf has no rule, or a pattern gets no leaf.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> params = {"w": np.array([[1.0, 2.0]]), "b": np.array([0.5])}
    >>> opt = gpuopt.Optimizer(params, gpuopt.Adam(lr=0.1))
    >>> opt.step({"w": np.array([[1.0, -1.0]]), "b": None})  # None: left alone
    >>> params["w"].round(6), params["b"]
    (array([[0.9, 2.1]]), array([0.5]))
    >>> opt.steps, opt.lr
    (1, 0.1)

    """

    @called_rightly("Optimizer", "; hyperparameters go to the rule, as in gpuopt.Adam(lr=0.1)")
    def __init__(
        self,
        params: Any,
        rule: Rules,
        *,
        engine: Engine = "auto",
        clip: Clip | None = None,
        nonfinite: Nonfinite = "ignore",
        every: int = 1,
        precision: Precision | Stochastic = "state32",
        scale: float | DynamicScale | None = None,
    ) -> None:
        given: Any = (("engine", engine, ENGINES), ("nonfinite", nonfinite, NONFINITE))
        for name, value, known in given:
            if not isinstance(value, str) or value not in known:
                raise ValueError(f"{name}: {value!r:.80}, expected one of {', '.join(map(repr, known))}")
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: {clip!r}, expected one such as gpuopt.clip_by_global_norm(1.0)")
        if isinstance(scale, DynamicScale) and nonfinite == "raise":
            raise ValueError(
                "nonfinite: 'raise' with a DynamicScale, whose gradients are expected to overflow now and then; expected "
                "'skip' or 'ignore', which then skips, too"
            )
        super().__init__(
            list(params) if isinstance(params, Iterator) else params,
            rule,
            engine=engine,
            clip=clip,
            nonfinite=nonfinite,
            every=Count().checked(every, "every"),
            precision=storage.checked(precision),
            scale=checked_scale(scale, "scale") if not isinstance(scale, DynamicScale | None) else scale,
        )

    @property
    def params(self) -> Any:
        """The parameters, as they were given."""
        return self._params

    @property
    def steps(self) -> int:
        """Updates so far; the next one uses ``schedule(steps)``. With ``every=k`` they are a k-th of the calls of `step`."""
        return self._steps

    @property
    def accumulated(self) -> int:
        """Gradients that are waiting for their update: 0 before and after each one, so always without ``every``."""
        return self._accumulation.waiting

    @property
    def rule(self) -> Rules:
        """The rule, as `tune` left it; with several, a dict by pattern."""
        return self._rules[0] if self._single else self.rules

    @property
    def rules(self) -> dict[str, Rule | None]:
        """The rules by pattern, as `tune` left them; a single rule has the pattern ``"*"``."""
        return tuning.Shown({pattern: shown(rule) for pattern, rule in self._by_pattern.items()})

    @property
    def lr(self) -> Any:
        """The learning rate that the next step will use, a float; with several rules, a dict by pattern.

        A number or a schedule may be assigned, which is ``tune(lr=...)``: every rule that has a learning rate gets it.

        Raises
        ------
        AttributeError
            If no rule has a hyperparameter ``lr``.
        TypeError, ValueError
            If a schedule fails or leaves its range; if what is assigned is neither a number nor a schedule, or out of
            range.

        """
        rates = {
            pattern: rule.at(self._steps)["lr"]
            for pattern, rule in self._by_pattern.items()
            if "lr" in rule.hyperparameters()
        }
        if not rates:
            names = " and ".join(dict.fromkeys(rule.name for rule in self._rules))
            raise AttributeError(f"lr: {names} has no hyperparameter 'lr', expected a rule that has one")
        return next(iter(rates.values())) if self._single else tuning.Shown(rates)

    @lr.setter
    def lr(self, value: Any) -> None:  # as `Hyper`, type checkers would believe that it is read as it was assigned
        if isinstance(value, dict):
            raise TypeError(
                "lr: a dict, expected a number or a schedule for all rules; opt.tune(PATTERN, lr=...) changes one of them"
            )
        self.tune(lr=value)

    def __setattr__(self, name: str, value: object) -> None:
        """Set an attribute, unless it is called like a hyperparameter: that would change nothing, in silence.

        Raises
        ------
        AttributeError
            If a hyperparameter has that name, or one that is much like it.

        """
        if not (name.startswith("_") or hasattr(type(self), name)):
            tuning.expect_no_hyperparameter(name, vars(self).get("_rules", ()))
        super().__setattr__(name, value)

    @property
    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients of the last step together, before clipping.

        NaN unless the optimizer clips by a norm or looks for non-finite gradients. A GPU is waited for.
        """
        return self._step.norm / (self._scale if isinstance(self._scale, float) else 1.0)

    @property
    def scale(self) -> float:
        """What the next loss is to be multiplied by: 1, unless there is an option ``scale``. A GPU is waited for."""
        return self._step.loss_scale[0] if isinstance(self._scale, DynamicScale) else self._scale or 1.0

    @property
    def scale_array(self) -> Any:
        """As `scale`, without waiting: an array of float64 without axes, of a GPU's library if a GPU holds all parameters.

        It is that of the next loss; ask again after each step.
        """
        return self._step.scale_array if isinstance(self._scale, DynamicScale) else np.array(self.scale)

    def step(self, grads: Any = OWN) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        grads
            A gradient for each parameter, in the same nesting: an array of the same library, device and shape. Another
            real dtype is cast to the one that is computed in. Of a complex parameter it is complex, ``dL/d(re) + i*dL/d(im)`` of a real
            loss: what torch returns; of JAX's gradient take the conjugate. None leaves a parameter and its state alone. For
            NumPy and CuPy it may be of any library that shares memory with them through DLPack: nothing is copied from
            device to device, and of torch only what is marked as conjugate or negative.
            Without it, tensors' own ``.grad`` is taken; autograd is told that they have changed.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit, a schedule leaves its range, or a parameter is not the array that it was: replaced
            in its container, resized, or made read-only. Nothing is changed then.
        FloatingPointError
            With ``nonfinite="raise"``, if a gradient has a NaN or an infinity. Nothing is changed then.

        """
        ready = self._held.gradients() if grads is OWN else self._tree.leaves_of(grads, "grads")
        if self._held.lenders.tensors:
            ready = self._held.lenders.views_of(ready)
        with self._lock:
            while not self._attempt([*ready] if self._every > 1 else ready):
                pass

    def _attempt(self, ready: list[Any]) -> bool:
        """Take a step; return False, with nothing changed by it, if a signal handler has changed this optimizer meanwhile.

        The lock does not keep out what runs in the same thread: a signal handler, or a destructor.
        """
        self._raise_overdue()
        scalars = self._step.scalars(self._steps, self._carried)
        limit = self._limit if self._clip else 0.0
        turn = self._turn  # not before: a schedule may change its own optimizer, each time
        if not turn:  # a change ended in the middle
            turn = self._turn = [None]
        try:
            if self._every > 1 and not self._gather(ready, turn):
                return True
            self._step.bind(ready, self._held.now(), self._held.checked)
            self._update(ready, scalars, limit, turn)
        except IndexError:  # of `turn.pop`, written in C, with which a change begins
            if self._turn is not turn:
                return False
            raise
        if self._held.lenders.tensors:
            self._held.lenders.tell()
        return True

    @property
    def _limit(self) -> float:
        """The limit for the next gradients before they are divided by the scale."""
        limit = self._clip.limit.at(self._steps) if self._clip else 0.0
        return limit * (self._scale if isinstance(self._scale, float) else 1.0)

    def tune(self, pattern: str | None = None, /, **hyperparameters: Hyper) -> None:
        """Change hyperparameters, from the next step on.

        Nothing is compiled, unless the change alters what is computed (momentum where there was none).

        Parameters
        ----------
        pattern
            With several rules, which one to change; otherwise every rule that has the hyperparameter.
        **hyperparameters
            Numbers or schedules.

        Raises
        ------
        TypeError, ValueError
            If there is no such hyperparameter or pattern, its range is left, or a schedule fails at the next step. Nothing is
            changed then.

        Examples
        --------
        >>> import numpy as np
        >>> import gpuopt
        >>> opt = gpuopt.Optimizer(np.zeros(3), gpuopt.Adam())
        >>> opt.tune(lr=1e-4)
        >>> opt.lr
        0.0001

        """
        with self._lock:
            changed = tuning.tuned(self._tuned, self._by_pattern, pattern, hyperparameters)
            if schedules := {name: value for name, value in hyperparameters.items() if callable(value)}:
                tuning.expect_values(tuning.rules_with(changed, self._original), schedules, self._steps)
            self._retune(changed)

    @property
    def listens(self) -> bool:
        """Whether there is a schedule that is told a metric; see `tell`."""
        return any(value.listens for rule in self._rules for value in tuning.schedules_of(rule).values())

    def tell(self, metric: SupportsFloat) -> None:
        """Tell a metric, such as the loss of an epoch, to the schedules that listen: `gpuopt.schedules.plateau`.

        What they make of it is a change as by `tune`, and saved as such.

        Parameters
        ----------
        metric
            A number; NaN is worse than all others.

        Raises
        ------
        TypeError
            If it is no number.

        Examples
        --------
        >>> import numpy as np
        >>> import gpuopt
        >>> opt = gpuopt.Optimizer(np.zeros(3), gpuopt.SGD(lr=gpuopt.schedules.plateau(0.1, factor=0.5, patience=1)))
        >>> for loss in (1.0, 0.5, 0.6, 0.5):
        ...     opt.tell(loss)
        >>> opt.lr
        0.05

        """
        with self._lock:
            heard = tuning.heard(self._rules, metric)
            if any(heard):
                self._retune([own | new for own, new in zip(self._tuned, heard, strict=True)])

    def __repr__(self) -> str:
        """Rules with their hyperparameters, what is updated and where it lives, and the steps taken."""
        waiting = f", {self.accumulated} of {self._every} gradients" if self._every > 1 else ""
        return f"Optimizer({self.rule!r}, {notebook.summary(self._steps, self._leaves())}{waiting})"

    def evaluation(self) -> Any:
        """Return the tree to evaluate with: averages where a rule keeps them, the parameters themselves otherwise.

        Raises
        ------
        ValueError
            If a parameter is not the array that it was; see `step`.
        FloatingPointError
            With ``nonfinite="raise"``, if a GPU has not told yet of a step that it left out. It is waited for then.

        Examples
        --------
        >>> import numpy as np
        >>> import gpuopt
        >>> w = np.zeros(2)
        >>> opt = gpuopt.Optimizer(w, gpuopt.chain(gpuopt.SGD(lr=1.0), gpuopt.EMA(0.5)))
        >>> opt.step(np.array([1.0, 2.0]))
        >>> opt.evaluation()
        array([-0.5, -1. ])

        """
        with self._lock:
            self._raise_overdue(wait=True)
            self._held.check_all()
            last = [
                rule.at(max(self._steps - 1, 0)) | own for rule, own in zip(self._rules, self._carried, strict=True)
            ]
            found = self._step.evaluation(last)
        same = all(new is p for new, p in zip(found, self._arrays, strict=True))
        return self._params if same else self._tree.build(self._held.lenders.like(found))

    def _repr_html_(self) -> str:
        """For notebooks: groups with their hyperparameters, leaves, and small curves of the schedules."""
        return notebook.optimizer(self._steps, self.rules, self._leaves())

    def _leaves(self) -> list[notebook.Leaf]:
        arrays = zip(self._tree.paths, self._arrays, self._groups, strict=True)
        return [notebook.Leaf(path, a.shape, dtype_of(a), place(a), self._patterns[group]) for path, a, group in arrays]

    def _gather(self, ready: list[Any], turn: Turn) -> bool:
        """Gather gradients; if they are all there, replace them by their means and return True."""
        is_last = self._accumulation.completes
        self._held.check_all(where=is_last)
        taking: tuple[Callable[[], object], ...] = (turn.pop, partial(setattr, self, "_turn", [None]))
        self._accumulation.add(ready, self._held.fitting, taking)
        return is_last

    def _update(self, ready: Sequence[Any], scalars: list[dict[str, float]], limit: float, turn: Turn) -> None:
        """Judge the gradients, then update all leaves and the step count, or change nothing."""
        bad = self._step.look(ready, limit, wait_for_host=self._nonfinite == "raise")
        if bad and self._nonfinite == "raise":
            self._accumulation.setting()()
            raise self._held.not_finite(bad, self._steps)
        carried = self._carried
        if any(carried):
            carried = [{name: h[name] for name in own} for own, h in zip(carried, scalars, strict=True)]
        count = partial(vars(self).update, _turn=[None], _steps=self._steps + 1, _carried=carried)
        used = [self._accumulation.setting()] if self._every > 1 else []
        if bad:
            skipped = partial(vars(self).update, _skipped=self._skipped + 1)
            in_one_go([turn.pop, *self._step.settling(), count, skipped, *used])
        else:
            if self._nonfinite == "raise" and any(carried):
                self._past.append((self._steps, self._carried))
            key = storage.key_of(self._precision, self._steps)
            self._step(ready, scalars, count, *used, key=key, first=(turn.pop,))
        if self._nonfinite == "raise":
            self._step.report()
