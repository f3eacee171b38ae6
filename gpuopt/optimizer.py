"""The optimizer: parameters, their state, and one step for all of them."""

from __future__ import annotations

import copy
import dataclasses
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

import numpy as np

from gpuopt import leaves, notebook, states
from gpuopt.arrays import assign, describe, detached, dtype_of, geometry, is_numpy, place, zeros_like
from gpuopt.engines.array import evaluation
from gpuopt.engines.complexes import slot_dtype
from gpuopt.engines.interrupts import forks, in_one_go
from gpuopt.engines.norms import Guard
from gpuopt.engines.step import ENGINES, Engine, Step, check_fusable, warn_without_machine_code
from gpuopt.gradients import Clip, Clipped
from gpuopt.groups import Rules, match
from gpuopt.rules.base import Rule
from gpuopt.rules.hyper import Hyper, unknown
from gpuopt.rules.slots import is_number, starts
from gpuopt.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


Nonfinite: TypeAlias = Literal["ignore", "skip", "raise"]
Precision: TypeAlias = Literal["state32", "param"]
PRECISIONS: tuple[Precision, ...] = ("state32", "param")
NONFINITE: tuple[Nonfinite, ...] = ("ignore", "skip", "raise")


class Optimizer:
    """Parameters, their state, and a step that updates them in place.

    Parameters
    ----------
    params
        Arrays of float32, float64, complex64, complex128, float16 or bfloat16 in any nesting of dicts, lists and tuples (or one bare array). They are updated in
        place, so they must be writable and must not share memory (of libraries other than NumPy and CuPy only the
        same array twice is noticed).
    rule
        One rule, or several by glob: ``{"*.b": SGD(lr=0.1), "*": Adam()}``. A leaf gets the rule of the first
        pattern that matches its dotted path, such as ``dense.b``.
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
        precision: Precision = "state32",
    ) -> None:
        given = (("engine", engine, ENGINES), ("nonfinite", nonfinite, NONFINITE), ("precision", precision, PRECISIONS))
        for name, value, known in given:
            if value not in known:
                raise ValueError(f"{name}: {value!r}, expected one of {', '.join(map(repr, known))}")
        if clip is not None and not isinstance(clip, Clip):
            raise TypeError(f"clip: {clip!r}, expected one such as gpuopt.clip_by_global_norm(1.0)")
        self._params = params
        self._engine = engine
        self._clip = clip
        self._nonfinite = nonfinite
        self._precision = precision
        self._read_leaves()
        self._single = isinstance(rule, Rule)
        self._patterns, self._original, self._groups = match(rule, self._tree)
        leaves.check_complex(self._tree, self._arrays, self._original, self._groups)
        self._rules = self._original
        self._tuned: list[dict[str, Hyper]] = [{} for _ in self._rules]
        self._carried = [dict(rule.carried) for rule in self._rules]
        self._steps = self._skipped = 0
        self._lock = threading.RLock()
        self._step = self._prepared(self._rules)
        forks.register(self)

    @property
    def params(self) -> Any:
        """The parameters, as they were given."""
        return self._params

    @property
    def steps(self) -> int:
        """Steps taken so far; the next one uses ``schedule(steps)``."""
        return self._steps

    @property
    def rule(self) -> Rules:
        """The rule, as `tune` left it; with several, a dict by pattern."""
        return self._rules[0] if self._single else self.rules

    @property
    def rules(self) -> dict[str, Rule]:
        """The rules by pattern, as `tune` left them; a single rule has the pattern ``"*"``."""
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
            for pattern, rule in self.rules.items()
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

    def step(self, grads: Any) -> None:
        """Update all parameters in place.

        Parameters
        ----------
        grads
            A gradient for each parameter, in the same nesting: an array of the same library, device and shape. Another
            real dtype is cast to the parameter's. Of a complex parameter it is complex, ``dL/d(re) + i*dL/d(im)`` of a real
            loss: what torch returns; of JAX's gradient take the conjugate. None leaves a parameter and its state alone.

        Raises
        ------
        TypeError, ValueError
            If a gradient does not fit, a schedule leaves its range, or a parameter is not the array that it was: replaced
            in its container, resized, or made read-only. Nothing is changed then.
        FloatingPointError
            With ``nonfinite="raise"``, if a gradient has a NaN or an infinity. Nothing is changed then.

        """
        ready = self._tree.leaves_of(grads, "grads")
        with self._lock:
            self._raise_overdue()
            scalars = self._step.scalars(self._steps, self._carried)
            limit = self._clip.limit.at(self._steps) if self._clip else 0.0
            self._step.bind(ready, self._tree.leaves_of(self._params, "params"), self._checked)
            self._update(ready, scalars, limit)

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
        if pattern is not None and pattern not in self._patterns:
            near, there = did_you_mean(pattern, self._patterns), listed(self._patterns, shown=repr)
            raise ValueError(f"tune: no rule for {pattern!r}{near}, expected one of {there}")
        chosen = [i for i, p in enumerate(self._patterns) if pattern in (None, p)]
        known = dict.fromkeys(name for i in chosen for name in self._rules[i].hyperparameters())
        for name in hyperparameters.keys() - known:
            raise unknown("tune", name, known)
        tuned = list(self._tuned)
        for i in chosen:
            tuned[i] = tuned[i] | {n: v for n, v in hyperparameters.items() if n in self._rules[i].hyperparameters()}
        with self._lock:
            in_one_go(self._with_rules(self._rules_with(tuned), tuned)[1])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a run needs to go on from here.

        Returns
        -------
        dict
            ``steps``; ``rules``: by pattern, the rule's name and what `tune` changed; ``params``: by path, the
            parameters; ``state``: by path and slot, the state. The arrays are the live ones: copy what must not change
            with the next step.

        """
        with self._lock:
            self._raise_overdue(wait=True)
            self._check_leaves()
            return {
                "steps": self._steps,
                "rules": states.rules_to_plain(self._patterns, self._rules, self._tuned, self._carried),
                "params": dict(zip(self._tree.paths, self._arrays, strict=True)),
                "state": {path: dict(own) for path, own in zip(self._tree.paths, self._step.slots, strict=True)},
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
        rules = self._rules if problems else self._rules_with(tuned)
        expected: dict[tuple[str, ...], Any] = {
            ("params", path): a for path, a in zip(self._tree.paths, self._arrays, strict=True)
        }
        expected |= {
            ("state", path, slot): np.zeros(()) if is_number(start) else self._slot_like(i, rules[group], slot)
            for i, (path, group) in enumerate(zip(self._tree.paths, self._groups, strict=True))
            for slot, start in starts(rules[group].slots).items()
        }
        given = states.arrays_of(state, expected, problems)
        carried = states.carried_of(state, self.rules, problems)
        for key in expected.keys() & given.keys():
            try:
                given[key] = self._step.readable(detached(given[key]), expected[key])
            except Exception as error:  # noqa: BLE001 - each library has its own
                problems.append(f"{'/'.join(key)}: {describe(given[key])} that cannot be read ({error})")
        if problems:
            raise ValueError("the state does not fit this optimizer:\n  " + "\n  ".join(sorted(problems)))

        with self._lock:
            self._check_leaves()
            step, changes = self._with_rules(rules, tuned)
            for i, path in enumerate(self._tree.paths):
                changes += step.copying(self._arrays[i], given["params", path])
                for slot, own in step.slots[i].items():
                    changes += step.copying(own, given["state", path, slot])
            changes.append(partial(vars(self).update, _steps=int(state["steps"]), _carried=carried))
            if self._nonfinite == "raise":
                changes += step.pardoning()
            in_one_go(changes, step.restoring())

    def _slot_like(self, i: int, rule: Rule, slot: str) -> Any:
        """An array such as a slot of a leaf is or, where the rule is new, will be."""
        own, p = self._step.slots[i].get(slot), self._arrays[i]
        if own is not None:
            return own
        dtype = slot_dtype(rule, slot, p, self._precision)
        return p if dtype == p.dtype else zeros_like(p, dtype)

    def __repr__(self) -> str:
        """Rules with their hyperparameters, what is updated and where it lives, and the steps taken."""
        return f"Optimizer({self.rule!r}, {notebook.summary(self._steps, self._leaves())})"

    def evaluation(self) -> Any:
        """Return the tree to evaluate with: averages where a rule keeps them, the parameters themselves otherwise.

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
            last = [
                rule.at(max(self._steps - 1, 0)) | own for rule, own in zip(self._rules, self._carried, strict=True)
            ]
            found = [
                evaluation(self._rules[group], p, slots, last[group])
                for p, group, slots in zip(self._arrays, self._groups, self._step.slots, strict=True)
            ]
        same = all(new is p for new, p in zip(found, self._arrays, strict=True))
        return self._params if same else self._tree.build(found)

    def _repr_html_(self) -> str:
        """For notebooks: groups with their hyperparameters, leaves, and small curves of the schedules."""
        return notebook.optimizer(self._steps, self.rules, self._leaves())

    def _leaves(self) -> list[notebook.Leaf]:
        arrays = zip(self._tree.paths, self._arrays, self._groups, strict=True)
        return [notebook.Leaf(path, a.shape, dtype_of(a), place(a), self._patterns[group]) for path, a, group in arrays]

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy: without kernels and addresses, which are of this process."""
        own = ("_tree", "_held", "_known", "_arrays", "_rules", "_step", "_lock")
        with self._lock:
            self._raise_overdue(wait=True)
            self._check_leaves()
            kept = {name: value for name, value in vars(self).items() if name not in own}
            return kept | {"_skipped": self.skipped, "slots": self._step.slots}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Make them anew."""
        vars(self).update({name: value for name, value in state.items() if name != "slots"})
        self._read_leaves()
        self._rules = self._rules_with(self._tuned)
        self._lock = threading.RLock()
        self._step = self._prepared(self._rules)
        for own, copied in zip(self._step.slots, state["slots"], strict=True):
            for slot, value in copied.items():  # laid out like the parameter, which a copy may not be as it was
                assign(own[slot], value)
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
        self._tree, self._arrays = leaves.parameters(self._params, in_place=True)
        self._held = self._tree.leaves_of(self._params, "params")
        self._known = list(map(geometry, self._held))
        if self._engine == "fused":
            for i, a in enumerate(self._arrays):
                check_fusable(self._tree.name(i, "params"), a)
        elif self._engine == "auto" and any(map(is_numpy, self._arrays)):
            warn_without_machine_code()

    def _prepared(self, rules: list[Rule], before: Step | None = None) -> Step:
        """Make the step for these rules, with the slots of the step that it replaces."""
        by = None if self._clip is None or self._clip.by == "value" else self._clip.by
        skip = self._nonfinite != "ignore"
        guard = Guard(by, skip) if by or skip else None
        slots = before.slots if before else [{} for _ in self._arrays]
        clipped = self._clipped(rules)
        return Step(
            self._arrays, self._held, self._groups, clipped, slots, self._engine, guard, before, self._precision
        )

    def _clipped(self, rules: list[Rule]) -> list[Rule]:
        return rules if self._clip is None else [Clipped(rule, self._clip) for rule in rules]

    def _checked(self, i: int, g: Any, p: Any) -> Any:
        """Check a parameter and its gradient, and return the gradient as an array that fits; see `Step.bind`."""
        self._check_leaf(i, p)
        return None if g is None else leaves.gradient(g, self._arrays[i], self._tree, i)

    def _check_leaf(self, i: int, p: Any) -> None:
        """Raise ValueError unless the user still holds a parameter as it was when this optimizer was made."""
        if p is self._held[i]:
            change = leaves.change_of(p, self._known[i])
        else:
            change = (
                "another array than the one that this optimizer updates; write into that one, as "
                "np.maximum(w, 0, out=w) does, or make a new optimizer"
            )
        if change:
            raise ValueError(f"{self._tree.name(i, 'params')}: {change}")

    def _check_leaves(self) -> None:
        for i, p in enumerate(self._tree.leaves_of(self._params, "params")):
            self._check_leaf(i, p)

    def _update(self, ready: Sequence[Any], scalars: list[dict[str, float]], limit: float) -> None:
        """Look at the gradients and update all leaves and the count, or leave all as it is."""
        bad = self._step.look(ready, limit, wait_for_host=self._nonfinite == "raise")
        if bad and self._nonfinite == "raise":
            raise self._bad_gradients(bad)
        if bad:
            vars(self).update(_skipped=self._skipped + 1, _steps=self._steps + 1)
        else:
            carried = [{name: h[name] for name in own} for own, h in zip(self._carried, scalars, strict=True)]
            self._step(ready, scalars, partial(vars(self).update, _steps=self._steps + 1, _carried=carried))
        if self._nonfinite == "raise":
            self._step.report()

    def _raise_overdue(self, *, wait: bool = False) -> None:
        """Raise the error of a step that a GPU left out."""
        if self._nonfinite != "raise":
            return
        overdue = self._step.overdue(wait=wait)
        if overdue is not None:
            skipped, bad = overdue
            in_one_go(
                [partial(setattr, self, "_steps", self._steps - skipped), *self._step.pardoning()],
                self._step.restoring(),
            )
            raise self._bad_gradients(bad)

    def _bad_gradients(self, bad: list[int]) -> FloatingPointError:
        names = ", ".join(self._tree.name(i, "grads") for i in bad)
        return FloatingPointError(f"{names}: NaN or infinity at step {self._steps}; that step changed nothing")

    def _with_rules(self, rules: list[Rule], tuned: list[dict[str, Hyper]]) -> tuple[Step, list[Callable[[], object]]]:
        """Return the step for other rules, recompiled only if the program changes, and what makes the optimizer use it."""
        clipped, step = self._clipped(rules), self._step
        if not step.computes(clipped):
            step = self._prepared(rules, step)
        changes: list[Callable[[], object]] = [
            partial(setattr, step, "rules", clipped),
            partial(vars(self).update, _step=step, _rules=rules, _tuned=tuned),
        ]
        return step, changes

    def _rules_with(self, tuned: list[dict[str, Hyper]]) -> list[Rule]:
        return [dataclasses.replace(rule, **own) for rule, own in zip(self._original, tuned, strict=True)]
