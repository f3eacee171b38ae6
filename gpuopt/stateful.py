"""Construction and state of an optimizer: saving, restoring, copying, and moving to other leaves."""

from __future__ import annotations

import contextlib
import copy
import gc
import operator
import threading
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias, TypeVar

import numpy as np

from gpuopt import leaves, states, tuning
from gpuopt.accumulation import COUNT, SUM, Accumulation
from gpuopt.arrays import alias, assign, dtype_of
from gpuopt.engines import storage
from gpuopt.engines.choice import Engine, check_engine
from gpuopt.engines.interrupts import forks, in_one_go
from gpuopt.engines.norms import DynamicScale
from gpuopt.engines.step import Step
from gpuopt.engines.storage import Precision, Stochastic
from gpuopt.gradients import Clip, clipped, guard_of
from gpuopt.groups import Frozen, match, shown
from gpuopt.held import Held
from gpuopt.rules.base import Rule
from gpuopt.rules.slots import Given, Shared, starts
from gpuopt.suggest import listed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from gpuopt.groups import Rules
    from gpuopt.rules.hyper import Hyper

T = TypeVar("T")
Nonfinite: TypeAlias = Literal["ignore", "skip", "raise"]
OPTIONS = ("engine", "clip", "nonfinite", "every", "precision", "scale")
"""Options that `with_params` hands on to the new optimizer."""
Turn: TypeAlias = list[None]
"""Held by all who are about to change an optimizer: the first one to change it empties the list, and puts another one in its place."""
PICKLED = {
    *(
        "_params",
        "_engine",
        "_clip",
        "_nonfinite",
        "_precision",
        "_every",
        "_scale",
        "_single",
        "_patterns",
        "_original",
        "_groups",
    ),
    *("_tuned", "_carried", "_steps", "_skipped", "_past", "slots", "waiting", "loss_scale"),
}
"""What the state of a pickle has; a subclass may add to it."""
PAST = 4096
"""Steps whose carried numbers are kept: a GPU reports a bad step at most some thousand launches later."""


NESTED = 3
"""Changes that may be on the way at once in a thread: a signal handler may begin one within another."""
MANY = 1000
"""Number of leaves from which on the garbage collector would scan the new objects again and again."""


@contextlib.contextmanager
def uncollected(leaves: int) -> Iterator[None]:
    """Switch the garbage collector off within the block if there are many leaves."""
    if leaves < MANY or not gc.isenabled():
        yield
        return
    try:
        gc.disable()
        yield
    finally:
        gc.enable()


class Stateful:
    """Base class of `gpuopt.Optimizer`: its leaves, rules and state.

    What is of this process alone (addresses, kernels, locks) is made by `_prepare`, when an optimizer is made and when one is
    unpickled or copied. Everything else is state, and one of its parts never changes without the others.
    """

    def __init__(
        self,
        params: Any,
        rule: Rules,
        *,
        engine: Engine,
        clip: Clip | None,
        nonfinite: Nonfinite,
        every: int,
        precision: Precision | Stochastic,
        scale: float | DynamicScale | None,
    ) -> None:
        self._params = params
        self._engine: Engine = engine
        self._clip = clip
        self._nonfinite: Nonfinite = nonfinite
        self._precision: Precision | Stochastic = precision
        self._every = every
        self._scale = scale
        self._read_leaves()
        with uncollected(len(self._arrays)):
            self._single = isinstance(rule, Rule)
            self._patterns, self._original, self._groups = match(rule, self._tree)
            leaves.check_rules(self._tree, self._arrays, self._original, self._groups)
            self._tuned: list[dict[str, Hyper]] = [{} for _ in self._original]
            self._carried = [dict(rule.carried) for rule in self._original]
            self._steps = self._skipped = 0
            self._past: deque[tuple[int, list[dict[str, float]]]] = deque(maxlen=PAST)
            self._prepare()

    def _read_leaves(self) -> None:
        """Find and check the leaves of the parameters."""
        self._held = Held(self._params)
        self._tree, self._arrays = self._held.tree, self._held.arrays
        check_engine(self._engine, self._arrays, partial(self._tree.name, root="params"))

    def _prepare(self) -> None:
        """Make the parts that are not pickled: the tuned rules, their step, and the memory of both."""
        self._rules = tuning.rules_with(self._tuned, self._original)
        frozen = [isinstance(self._original[group], Frozen) for group in self._groups]
        self._rows = frozenset(i for i, is_frozen in enumerate(frozen) if not is_frozen)
        leaves.check_precision(self._tree, self._arrays, self._rows, storage.name_of(self._precision))
        self._lock = threading.RLock()
        self._turn: Turn = [None]
        self._changes_on_the_way = 0
        self._step = self._prepared(self._rules)
        self._accumulation = Accumulation(self._arrays, sorted(self._rows), self._every, self._engine)
        forks.register(self)

    def _prepared(self, rules: list[Rule], before: Step | None = None) -> Step:
        """Make the step for these rules, with the slots of the step that it replaces."""
        guard = guard_of(self._clip, self._scale, skip=self._nonfinite != "ignore")
        slots = before.slots if before else [{} for _ in self._arrays]
        idle = set(range(len(self._arrays))) - self._rows
        kept = slots, self._engine, guard, before, idle, storage.name_of(self._precision)
        seen = clipped(rules, self._clip, self._scale)
        return Step(self._arrays, self._held.originals, self._groups, seen, *kept)

    @property
    def _by_pattern(self) -> dict[str, Rule]:
        return dict(zip(self._patterns, self._rules, strict=True))

    @property
    def skipped(self) -> int:
        """Steps that were left out for a gradient that was not finite. A GPU is waited for."""
        return self.count_skipped()()

    def count_skipped(self) -> Callable[[], int]:
        """As `skipped`, without waiting for a GPU: what is returned waits, and has the count of this moment."""
        count, before = self._counting(), self._skipped
        return lambda: before + count()

    def _counting(self) -> Callable[[], int]:
        """Have a GPU count the steps that it left out and has not been pardoned."""
        leaves_out = self._nonfinite == "skip" or isinstance(self._scale, DynamicScale)
        return self._step.count_skipped() if leaves_out else int

    def state_dict(self) -> dict[str, Any]:
        """Return parameters, state and hyperparameters: everything that a run needs to continue.

        Returns
        -------
        dict
            ``steps``; ``skipped``, if some were left out; ``accumulated``, if gradients are waiting; ``seed``, of what is rounded
            at random; ``scale``, if it is dynamic, and its good steps; ``rules``: by pattern, the rule's name and what `tune`
            changed; ``params``: by path, the parameters; ``state``: by path and slot, the state. The arrays are the live ones:
            copy what must not change with the next step.

        """
        state, skipped = self._state_of_now()
        return state | skipped()

    def _state_of_now(self) -> tuple[dict[str, Any], Callable[[], dict[str, int]]]:
        """Return `state_dict` but for ``skipped``, and a function for that: it alone waits for a GPU."""
        with self._lock:
            self._raise_overdue(wait=True)
            self._held.check_all()
            count = self.count_skipped()
            return {
                "steps": self._steps,
                **({"accumulated": waiting} if (waiting := self._accumulation.waiting) else {}),
                **({"seed": self._precision.seed} if isinstance(self._precision, Stochastic) else {}),
                **({"scale": self._step.loss_scale} if isinstance(self._scale, DynamicScale) else {}),
                "rules": states.rules_to_plain(self._patterns, self._rules, self._tuned, self._carried),
                "params": dict(zip(self._tree.paths, self._arrays, strict=True)),
                "state": {
                    path: {slot: x.view() if type(x) is np.ndarray else alias(x) for slot, x in own.items()}
                    for path, own in zip(self._tree.paths, self._accumulation.with_slots(self._step.slots), strict=True)
                },
            }, lambda: {"skipped": number} if (number := count()) else {}

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
        with uncollected(len(self._arrays)):
            self._go_on_from(state)

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        """See `load_state_dict`."""
        states.check_nesting(state)
        problems: list[str] = []
        tuned = states.tuned_of(state, self._patterns, self._original, problems)
        rules = self._rules if problems else tuning.rules_with(tuned, self._original)
        precision = states.precision_of(state, self._precision, problems)
        scale = states.scale_of(state, is_dynamic=isinstance(self._scale, DynamicScale), problems=problems)
        skipped = states.skipped_of(state, problems)
        accumulated = states.accumulated_of(state, self._every, problems)
        carried = states.carried_of(state, self._by_pattern, problems)
        paths = self._tree.paths

        with self._lock:
            self._held.check_all()
            step, changes = self._with_rules(rules, tuned)
            targets: dict[states.Key, Any] = {("params", path): a for path, a in zip(paths, self._arrays, strict=True)}
            targets |= {
                ("state", path, slot): own
                for path, slots in zip(paths, step.slots, strict=True)
                for slot, own in slots.items()
            }
            waiting = {i: paths[i] for i in self._accumulation.sums} if accumulated else {}
            targets |= {("state", path, SUM): self._accumulation.sums[i] for i, path in waiting.items()}
            counting = {("state", path, COUNT): np.zeros(()) for path in waiting.values()}
            given = states.arrays_of(state, targets | counting, step.unreadable, problems)
            states.check_shared(given, paths, self._groups, rules, problems)
            counts = states.counts_of(given, COUNT, waiting, accumulated, problems)
            if problems:
                raise states.misfit(problems)
            changes += step.copying([(own, given[key]) for key, own in targets.items()])
            changes.append(self._accumulation.setting(accumulated, counts))
            numbers = {"_steps": operator.index(state["steps"]), "_carried": carried, "_precision": precision}
            # A GPU goes on counting, unless it is pardoned.
            counted = 0 if self._nonfinite == "raise" else step.count_skipped()()
            changes.append(partial(vars(self).update, **numbers, _skipped=skipped - counted))
            if scale:
                changes += step.setting_scale(*scale)
            if self._nonfinite == "raise":
                changes += step.pardoning()
            in_one_go(changes, step.restoring())
            if self._held.lenders.tensors:
                self._held.lenders.tell()

    def _save(self, write: Callable[[Mapping[str, Any]], None]) -> None:
        """Write the state with a function of `gpuopt.checkpoint`."""
        with self._lock, uncollected(len(self._arrays)):  # other threads step when it is written
            write(self.state_dict())

    def _load(self, read: Callable[[], tuple[Mapping[str, Any], T]]) -> T:
        """Restore the state that ``read`` returns, whose arrays nobody else uses; return its second result."""
        self._held.check_all()
        with uncollected(len(self._arrays)):
            state, more = read()
            self._go_on_from(state)
        return more

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
        given: Rules = (
            self._original[0] if self._single else dict(zip(self._patterns, map(shown, self._original), strict=True))
        )
        options = {name: getattr(self, f"_{name}") for name in OPTIONS}
        new = type(self)(params, given, **options)
        with self._lock:  # not before: a fork waits for it, and making an optimizer waits for a fork
            self._raise_overdue(wait=True)
            new._inherit(self)
        return new

    def _inherit(self, old: Self) -> None:
        """Go on with the state of the leaves of another optimizer that have the same paths."""
        there = {path: i for i, path in enumerate(old._tree.paths)}
        pairs = [(i, there[path]) for i, path in enumerate(self._tree.paths) if path in there]
        for i, k in pairs:
            now, before = (f"shape {tuple(a.shape)} of {dtype_of(a)}" for a in (self._arrays[i], old._arrays[k]))
            if now != before:
                cure = "give it another name, or leave it out once"
                raise ValueError(f"{self._tree.name(i, 'params')}: {now}, expected {before} as before; {cure}")
        self._steps, self._carried = old._steps, copy.deepcopy(old._carried)
        self._skipped = old.skipped
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
        self._accumulation.inherit(old._accumulation, pairs)
        if isinstance(self._scale, DynamicScale):
            in_one_go(self._step.setting_scale(*old._step.loss_scale), self._step.restoring())

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for pickle and copy, without kernels and addresses, which belong to this process."""
        own = (
            "_tree",
            "_held",
            "_arrays",
            "_rules",
            "_rows",
            "_step",
            "_lock",
            "_turn",
            "_changes_on_the_way",
            "_accumulation",
        )
        with self._lock:
            self._raise_overdue(wait=True)
            self._held.check_all()
            kept = {name: value for name, value in vars(self).items() if name not in own}
            waiting = self._accumulation.sums, self._accumulation.counts, self._accumulation.waiting
            scale = self._step.loss_scale if isinstance(self._scale, DynamicScale) else None
            found = {"slots": self._step.slots, "waiting": waiting, "loss_scale": scale}
            return kept | found | {"_skipped": self.skipped}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state, and make kernels and addresses again; ValueError for the state of another version."""
        if missing := sorted(PICKLED - state.keys()):
            raise ValueError(
                f"Optimizer: a pickle of another version of gpuopt, without {listed(missing)}; expected one of this version, or "
                "a file of gpuopt.save, which other versions read, too"
            )
        vars(self).update(
            {name: value for name, value in state.items() if name not in ("slots", "waiting", "loss_scale")}
        )
        self._read_leaves()
        self._prepare()
        for own, copied in zip(self._step.slots, state["slots"], strict=True):
            for slot, value in copied.items():  # laid out like the parameter, which a copy may not be as it was
                assign(own[slot], value)
        sums, counts, taken = state["waiting"]
        self._accumulation.setting(taken, counts)()
        for i, copied in sums.items():
            assign(self._accumulation.sums[i], copied)
        if state["loss_scale"]:
            in_one_go(self._step.setting_scale(*state["loss_scale"]), self._step.restoring())

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy under the lock, so that no step of another thread is half done."""
        memo[id(self)] = new = type(self).__new__(type(self))
        with self._lock:
            state = copy.deepcopy(self.__getstate__(), memo)
        new.__setstate__(state)  # not under the lock, which a fork waits for
        return new

    def _retune(self, tuned: list[dict[str, Hyper]]) -> None:
        """Replace the tuned hyperparameters."""
        if tuning.are_same(tuned, self._tuned):
            return
        if self._changes_on_the_way == NESTED:
            raise RuntimeError(
                "tune: called again and again by a schedule of the same optimizer, which every change asks; expected a schedule "
                "that returns numbers, and changes between steps"
            )
        self._changes_on_the_way += 1
        try:
            step, changes = self._with_rules(tuning.rules_with(tuned, self._original), tuned)
        finally:
            self._changes_on_the_way -= 1
        if step is not self._step and not step.inherits:
            self._raise_overdue(wait=True)
        in_one_go(changes)

    def _with_rules(self, rules: list[Rule], tuned: list[dict[str, Hyper]]) -> tuple[Step, list[Callable[[], object]]]:
        """Return the step for other rules, recompiled only if a program changes, and the calls that install it."""
        seen, step = clipped(rules, self._clip, self._scale), self._step
        skipped = self._skipped
        if not step.computes(seen):
            leaves.check_rules(self._tree, self._arrays, rules, self._groups)
            step = self._prepared(rules, step)
            if self._nonfinite != "raise" and not step.inherits:
                skipped = self.skipped
        changes: list[Callable[[], object]] = [
            self._turn.clear,
            partial(setattr, step, "rules", seen),
            partial(vars(self).update, _turn=[None], _step=step, _rules=rules, _tuned=tuned, _skipped=skipped),
        ]
        return step, changes

    def _raise_overdue(self, *, wait: bool = False) -> None:
        """Raise the error of a step that a GPU left out."""
        overdue = self._step.overdue(wait=wait) if self._nonfinite == "raise" else None
        if overdue is not None:
            skipped, bad = overdue
            then = self._steps - skipped
            carried = dict(self._past).get(then, self._carried)
            in_one_go(
                [
                    self._turn.clear,
                    partial(vars(self).update, _turn=[None], _steps=then, _carried=carried),
                    self._accumulation.setting(),
                    *self._step.pardoning(),
                ],
                self._step.restoring(),
            )
            raise self._held.not_finite(bad, self._steps)
