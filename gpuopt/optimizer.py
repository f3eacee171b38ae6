"""The optimizer: parameters, their state, and one step for all of them."""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

import numpy as np

from gpuopt import leaves, notebook, states, tuning
from gpuopt.accumulation import COUNT, SUM, Accumulation
from gpuopt.arrays import assign, dtype_of, place
from gpuopt.engines.choice import ENGINES, Engine, check_engine
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.interrupts import forks, in_one_go
from gpuopt.engines.step import Step
from gpuopt.gradients import Clip, clipped, guard_of
from gpuopt.groups import Frozen, Rules, match, shown
from gpuopt.lending import view_of
from gpuopt.rules.base import Rule
from gpuopt.rules.hyper import Count
from gpuopt.rules.slots import Given, Shared, starts
from gpuopt.schedules import Schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import SupportsFloat

    from gpuopt.rules.hyper import Hyper

OWN: Any = object()
"""Stands for the gradients that the parameters have themselves."""
T = TypeVar("T")
Nonfinite: TypeAlias = Literal["ignore", "skip", "raise"]
Precision: TypeAlias = Literal["state32", "param"]
PRECISIONS: tuple[Precision, ...] = ("state32", "param")
NONFINITE: tuple[Nonfinite, ...] = ("ignore", "skip", "raise")
PAST = 4096
"""Steps whose carried numbers are remembered; a GPU is at most some thousand launches behind when it tells of a bad one."""


class Optimizer:
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
        sums that are a part of the state, one array like the parameter; the last one updates. A gradient of None counts
        as zeros, and a leaf that got none but None is left alone. ``clip`` and ``nonfinite`` look at the mean: with a bad
        gradient the update is left out, or raises, and the gradients with it are dropped. ``steps`` counts updates.
    precision
        Of leaves of float16 or bfloat16, with which is computed in float32: "state32" keeps the state in float32, "param" in
        the leaf's own dtype. Both round to nearest.

    Raises
    ------
    TypeError
        If a leaf is no array of these, a rule no `Rule`, or its update not what an engine can run.
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

    def __init__(
        self,
        params: Any,
        rule: Rules,
        *,
        engine: Engine = "auto",
        clip: Clip | None = None,
        nonfinite: Nonfinite = "ignore",
        every: int = 1,
        precision: Precision = "state32",
    ) -> None:
        given = (("engine", engine, ENGINES), ("nonfinite", nonfinite, NONFINITE), ("precision", precision, PRECISIONS))
        for name, value, known in given:
            if value not in known:
                raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, known))}")
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: {clip!r}, expected one such as gpuopt.clip_by_global_norm(1.0)")
        self._params = list(params) if isinstance(params, Iterator) else params
        self._engine = engine
        self._clip = clip
        self._nonfinite = nonfinite
        self._precision = precision
        self._every = Count().checked(every, "every")
        self._read_leaves()
        self._single = isinstance(rule, Rule)
        self._patterns, self._original, self._groups = match(rule, self._tree)
        leaves.check_rules(self._tree, self._arrays, self._original, self._groups)
        self._rules = self._original
        self._tuned: list[dict[str, Hyper]] = [{} for _ in self._rules]
        self._carried = [dict(rule.carried) for rule in self._rules]
        self._steps = self._skipped = 0
        self._past: deque[tuple[int, list[dict[str, float]]]] = deque(maxlen=PAST)
        self._lock = threading.RLock()
        self._step = self._prepared(self._rules)
        self._accumulation = self._accumulating()
        forks.register(self)

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
        return self._accumulation.waiting if self._accumulation else 0

    @property
    def rule(self) -> Rules:
        """The rule, as `tune` left it; with several, a dict by pattern."""
        return self._rules[0] if self._single else self.rules

    @property
    def rules(self) -> dict[str, Rule | None]:
        """The rules by pattern, as `tune` left them; a single rule has the pattern ``"*"``."""
        return {pattern: shown(rule) for pattern, rule in self._by_pattern.items()}

    @property
    def _by_pattern(self) -> dict[str, Rule]:
        return dict(zip(self._patterns, self._rules, strict=True))

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
        return next(iter(rates.values())) if self._single else rates

    @lr.setter
    def lr(self, value: Any) -> None:  # as `Hyper`, type checkers would believe that it is read as it was assigned
        self.tune(lr=value)

    @property
    def gradient_norm(self) -> float:
        """The Euclidean norm of all gradients of the last step together, before clipping.

        NaN unless the optimizer clips by a norm or looks for non-finite gradients. A GPU is waited for.
        """
        return self._step.norm

    @property
    def skipped(self) -> int:
        """Steps that were left out for a gradient that was not finite. A GPU is waited for."""
        return self.count_skipped()()

    def count_skipped(self) -> Callable[[], int]:
        """As `skipped`, without waiting for a GPU: what is returned waits, and has the count of this moment."""
        count, before = self._step.count_skipped(), self._skipped
        return lambda: before + count()

    def step(self, grads: Any = OWN) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        grads
            A gradient for each parameter, in the same nesting: an array of the same library, device and shape. Another
            real dtype is cast to the parameter's. Of a complex parameter it is complex, ``dL/d(re) + i*dL/d(im)`` of a real
            loss: what torch returns; of JAX's gradient take the conjugate. None leaves a parameter and its state alone. For
            NumPy and CuPy it may be of any library that shares memory with them through DLPack: nothing is copied from
            device to device. Without it, tensors' own ``.grad`` is taken; autograd is told that they have changed.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit, a schedule leaves its range, or a parameter is not the array that it was: replaced
            in its container, resized, or made read-only. Nothing is changed then.
        FloatingPointError
            With ``nonfinite="raise"``, if a gradient has a NaN or an infinity. Nothing is changed then.

        """
        ready = self._held.gradients() if grads is OWN else self._tree.leaves_of(grads, "grads")
        if self._held.lenders:
            ready = list(map(view_of, ready))
        with self._lock:
            self._raise_overdue()
            scalars = self._step.scalars(self._steps, self._carried)
            limit = self._clip.limit.at(self._steps) if self._clip else 0.0
            if self._accumulation is not None and not self._accumulate(ready, self._accumulation):
                return
            self._step.bind(ready, self._held.now(), self._held.checked)
            self._update(ready, scalars, limit)
            if self._held.lenders:
                self._held.lenders.tell()

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
            If there is no such hyperparameter or pattern, or its range is left. Nothing is changed then.

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
            self._retune(tuning.tuned(self._tuned, self._by_pattern, pattern, hyperparameters))

    def _retune(self, tuned: list[dict[str, Hyper]]) -> None:
        """Go on with other hyperparameters."""
        step, changes = self._with_rules(tuning.rules_with(tuned, self._original), tuned)
        if step is not self._step and not step.inherits:
            self._raise_overdue(wait=True)
        in_one_go(changes)

    @property
    def listens(self) -> bool:
        """Whether there is a schedule that is told a metric; see `tell`."""
        values = (getattr(rule, name) for rule in self._rules for name in rule.hyperparameters())
        return any(value.listens for value in values if isinstance(value, Schedule))

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
        try:
            number = float(metric)
        except (TypeError, ValueError):
            raise TypeError(f"tell: {metric!r:.80}, expected a number") from None
        with self._lock:
            heard = []
            for rule in self._rules:
                values = {name: getattr(rule, name) for name in rule.hyperparameters()}
                listening = {name: value for name, value in values.items() if isinstance(value, Schedule)}
                new = {name: value.told(number) for name, value in listening.items()}
                heard.append({name: value for name, value in new.items() if value != listening[name]})
            if any(heard):
                tuned = [own | new for own, new in zip(self._tuned, heard, strict=True)]
                self._retune(tuned)

    def with_params(self, params: Any) -> Self:
        """Return an optimizer for other leaves, which goes on with the state of those that there were before.

        Parameters
        ----------
        params
            As for `Optimizer`. A leaf with the path of one that is here keeps its state, wherever the array is now; the
            others start anew. All get the rule of the pattern that matches.

        Returns
        -------
        Optimizer
            With its own copy of the state, the same options, tuned hyperparameters and number of steps. This one stays as it
            is.

        Raises
        ------
        TypeError, ValueError
            As `Optimizer`; if a leaf has another shape or dtype than before; if a rule has a tree of arrays like the old
            parameters.

        Examples
        --------
        >>> import numpy as np
        >>> import gpuopt
        >>> params = {"a": np.zeros(2), "b": np.zeros(3)}
        >>> opt = gpuopt.Optimizer(params, gpuopt.Adam(lr=0.1))
        >>> opt.step({"a": np.ones(2), "b": np.ones(3)})
        >>> del params["b"]
        >>> params["c"] = np.zeros(1)
        >>> opt = opt.with_params(params)
        >>> opt.step({"a": np.ones(2), "c": np.ones(1)})
        >>> opt.steps, params["a"].round(6)
        (2, array([-0.2, -0.2]))

        """
        for rule in self._original:
            for name, start in starts(rule.slots).items():
                if isinstance(start, Given) and not hasattr(start.value, "shape"):
                    raise ValueError(f"{rule.name}: {name} is a tree like the old parameters; make a new optimizer")
        original = {pattern: shown(rule) for pattern, rule in zip(self._patterns, self._original, strict=True)}
        options: dict[str, Any] = {"engine": self._engine, "clip": self._clip, "nonfinite": self._nonfinite}
        new = type(self)(params, self._original[0] if self._single else original, every=self._every, **options)
        with self._lock:  # not before: a fork waits for it, and making an optimizer waits for a fork
            self._raise_overdue(wait=True)
            new._take_over(self)
        return new

    def _take_over(self, old: Self) -> None:
        """Go on with the state of the leaves of another optimizer that have the same paths."""
        there = {path: i for i, path in enumerate(old._tree.paths)}
        pairs = [(i, there[path]) for i, path in enumerate(self._tree.paths) if path in there]
        for i, k in pairs:
            now, before = (f"shape {tuple(a.shape)} of {dtype_of(a)}" for a in (self._arrays[i], old._arrays[k]))
            if now != before:
                cure = "give it another name, or leave it out once"
                raise ValueError(f"{self._tree.name(i, 'params')}: {now}, expected {before} as before; {cure}")
        self._steps, self._skipped, self._carried = old._steps, old.skipped, copy.deepcopy(old._carried)
        self._retune(old._tuned)
        shared = {
            (old._groups[k], name): own[name]
            for k, own in enumerate(old._step.slots)
            for name, start in starts(old._rules[old._groups[k]].slots).items()
            if isinstance(start, Shared)
        }
        for i, own in enumerate(self._step.slots):
            for name, target in own.items():
                if (self._groups[i], name) in shared:
                    assign(target, shared[self._groups[i], name])
        for i, k in pairs:
            for name, target in self._step.slots[i].items():
                assign(target, old._step.slots[k][name])
        if self._accumulation and old._accumulation:
            self._accumulation.taken = old.accumulated
            for i, k in ((self._rows[i], old._rows[k]) for i, k in pairs if i in self._rows):
                self._accumulation.counts[i] = old._accumulation.counts[k]
                assign(self._accumulation.sums[i], old._accumulation.sums[k])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on from here.

        Returns
        -------
        dict
            ``steps``; ``accumulated``, if gradients are waiting; ``rules``: by pattern, the rule's name and what `tune`
            changed; ``params``: by path, the parameters; ``state``: by path and slot, the state. The arrays are the live
            ones: copy what must not change with the next step.

        """
        with self._lock:
            self._raise_overdue(wait=True)
            self._held.check_all()
            return {
                "steps": self._steps,
                **({"accumulated": self.accumulated} if self.accumulated else {}),
                "rules": states.rules_to_plain(self._patterns, self._rules, self._tuned, self._carried),
                "params": dict(zip(self._tree.paths, self._arrays, strict=True)),
                "state": {
                    path: {**own, **self._waiting(i)}
                    for i, (path, own) in enumerate(zip(self._tree.paths, self._step.slots, strict=True))
                },
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Parameters
        ----------
        state
            Of an optimizer with the same leaves and rules; its arrays may be of any library and device. Hyperparameters
            stay as they are here, but for those that had been changed by `tune`.

        Raises
        ------
        ValueError
            If it does not fit. Every leaf, shape, dtype and rule that differs is listed, and nothing is changed.

        """
        states.check_nesting(state)
        problems: list[str] = []
        tuned = states.tuned_of(state, self._patterns, self._original, problems)
        rules = self._rules if problems else tuning.rules_with(tuned, self._original)
        dtypes = partial(slot_dtype, precision=self._precision)
        expected = states.expected_arrays(self._tree.paths, self._arrays, self._groups, rules, dtypes)
        accumulated = states.accumulated_of(state, self._every, problems)
        waiting = [self._tree.paths[i] for i in self._rows] if accumulated else []
        sums = self._accumulation.sums if self._accumulation else []
        expected |= {("state", path, SUM): own for path, own in zip(waiting, sums, strict=False)}
        expected |= {("state", path, COUNT): np.zeros(()) for path in waiting}
        given = states.arrays_of(state, expected, self._step.readable, problems)
        counts = states.counts_of(given, COUNT, waiting, accumulated, problems) or [0] * len(sums)
        carried = states.carried_of(state, self._by_pattern, problems)
        if problems:
            raise states.misfit(problems)

        with self._lock:
            self._held.check_all()
            step, changes = self._with_rules(rules, tuned)
            for i, path in enumerate(self._tree.paths):
                changes += step.copying(self._arrays[i], given["params", path])
                for slot, own in step.slots[i].items():
                    changes += step.copying(own, given["state", path, slot])
            for path, own in zip(waiting, sums, strict=False):
                changes += step.copying(own, given["state", path, SUM])
            if self._accumulation is not None:
                changes.append(partial(vars(self._accumulation).update, taken=accumulated, counts=counts))
            changes.append(partial(vars(self).update, _steps=int(state["steps"]), _carried=carried))
            if self._nonfinite == "raise":
                changes += step.pardoning()
            in_one_go(changes, step.restoring())
            if self._held.lenders:
                self._held.lenders.tell()

    def _save(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        """Have the state written; `gpuopt.checkpoint` knows how."""
        with self._lock:  # other threads step when it is written
            write(self.state_dict())

    def _load(self, read: Callable[[], tuple[Mapping[str, Any], T]]) -> T:
        """Go on from the state that is read, and return what came with it."""
        self._held.check_all()
        state, more = read()
        self.load_state_dict(state)
        return more

    def __repr__(self) -> str:
        """Rules with their hyperparameters, what is updated and where it lives, and the steps taken."""
        waiting = f", {self.accumulated} of {self._every} gradients" if self._accumulation else ""
        return f"Optimizer({self.rule!r}, {notebook.summary(self._steps, self._leaves())}{waiting})"

    def evaluation(self) -> Any:
        """Return the tree to evaluate with: averages where a rule keeps them, the parameters themselves otherwise.

        Raises
        ------
        ValueError
            If a parameter is not the array that it was; see `step`.

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

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without kernels and addresses, which are of this process."""
        own = ("_tree", "_held", "_arrays", "_rules", "_step", "_lock", "_accumulation", "_rows")
        with self._lock:
            self._raise_overdue(wait=True)
            self._held.check_all()
            kept = {name: value for name, value in vars(self).items() if name not in own}
            waiting = self._accumulation and (self._accumulation.sums, self._accumulation.counts, self.accumulated)
            return kept | {"_skipped": self.skipped, "slots": self._step.slots, "waiting": waiting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make them anew."""
        vars(self).update({name: value for name, value in state.items() if name not in ("slots", "waiting")})
        self._read_leaves()
        self._rules = tuning.rules_with(self._tuned, self._original)
        self._lock = threading.RLock()
        self._step = self._prepared(self._rules)
        for own, copied in zip(self._step.slots, state["slots"], strict=True):
            for slot, value in copied.items():  # laid out like the parameter, which a copy may not be as it was
                assign(own[slot], value)
        self._accumulation = self._accumulating()
        if self._accumulation:
            sums, self._accumulation.counts, self._accumulation.taken = state["waiting"]
            for own, copied in zip(self._accumulation.sums, sums, strict=True):
                assign(own, copied)
        forks.register(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy between two steps of other threads."""
        memo[id(self)] = new = type(self).__new__(type(self))
        with self._lock:
            state = copy.deepcopy(self.__getstate__(), memo)
        new.__setstate__(state)  # not under the lock, which a fork waits for
        return new

    def _read_leaves(self) -> None:
        """Find and check the leaves of the parameters."""
        self._held = leaves.Held(self._params)
        self._tree, self._arrays = self._held.tree, self._held.arrays
        check_engine(self._engine, self._arrays, partial(self._tree.name, root="params"))

    def _prepared(self, rules: list[Rule], before: Step | None = None) -> Step:
        """Make the step for these rules, with the slots of the step that it replaces."""
        guard = guard_of(self._clip, skip=self._nonfinite != "ignore")
        slots = before.slots if before else [{} for _ in self._arrays]
        seen = clipped(rules, self._clip)
        idle = set(range(len(self._arrays))) - self._rows.keys()
        kept = slots, self._engine, guard, before, idle, self._precision
        return Step(self._arrays, self._held.originals, self._groups, seen, *kept)

    @cached_property
    def _rows(self) -> dict[int, int]:
        """Of each leaf that is not frozen, its number among these."""
        updated = [i for i, group in enumerate(self._groups) if not isinstance(self._original[group], Frozen)]
        return {i: row for row, i in enumerate(updated)}

    def _accumulating(self) -> Accumulation | None:
        """Make what gathers gradients."""
        if self._every == 1:
            return None
        return Accumulation([self._arrays[i] for i in self._rows], self._every, self._engine)

    def _waiting(self, i: int) -> dict[str, Any]:
        """Slots of the gradients that are waiting."""
        row = self._rows.get(i)
        return {} if self._accumulation is None or row is None else self._accumulation.slots(row)

    def _accumulate(self, ready: list[Any], accumulation: Accumulation) -> bool:
        """Gather gradients; replace them by their means and return True if they are all there."""
        members = list(self._rows)
        is_last = accumulation.completes
        if is_last:
            self._held.check_all()

        def checked(row: int, g: Any, _: Any) -> Any:
            i = members[row]
            return None if g is None else leaves.gradient(g, self._arrays[i], self._tree, i)

        means = accumulation.add([ready[i] for i in members], checked)
        for i, mean in zip(members, means, strict=True):
            ready[i] = mean
        return is_last

    def _update(self, ready: Sequence[Any], scalars: list[dict[str, float]], limit: float) -> None:
        """Look at the gradients and update all leaves and the count, or leave all as it is."""
        bad = self._step.look(ready, limit, wait_for_host=self._nonfinite == "raise")
        if bad and self._nonfinite == "raise":
            raise self._held.not_finite(bad, self._steps)
        carried = [{name: h[name] for name in own} for own, h in zip(self._carried, scalars, strict=True)]
        if bad:
            vars(self).update(_skipped=self._skipped + 1, _steps=self._steps + 1, _carried=carried)
        else:
            count = partial(vars(self).update, _steps=self._steps + 1, _carried=carried)
            if self._nonfinite == "raise" and any(carried):
                self._past.append((self._steps, self._carried))
            self._step(ready, scalars, count)
        if self._nonfinite == "raise":
            self._step.report()

    def _raise_overdue(self, *, wait: bool = False) -> None:
        """Raise the error of a step that a GPU left out."""
        overdue = self._step.overdue(wait=wait) if self._nonfinite == "raise" else None
        if overdue is not None:
            skipped, bad = overdue
            then = self._steps - skipped
            carried = dict(self._past).get(then, self._carried)
            in_one_go(
                [
                    partial(vars(self).update, _steps=then, _carried=carried),
                    *([partial(setattr, self._accumulation, "taken", 0)] if self._accumulation else []),
                    *self._step.pardoning(),
                ],
                self._step.restoring(),
            )
            raise self._held.not_finite(bad, self._steps)

    def _with_rules(self, rules: list[Rule], tuned: list[dict[str, Hyper]]) -> tuple[Step, list[Callable[[], object]]]:
        """Return the step for other rules, recompiled only if the program changes, and what makes the optimizer use it."""
        seen, step = clipped(rules, self._clip), self._step
        skipped = self._skipped
        if not step.computes(seen):
            step = self._prepared(rules, step)
            if self._nonfinite == "skip" and not step.inherits:
                skipped = self.skipped
        changes: list[Callable[[], object]] = [
            partial(setattr, step, "rules", seen),
            partial(vars(self).update, _step=step, _rules=rules, _tuned=tuned, _skipped=skipped),
        ]
        return step, changes
