"""Chains: transforms and one rule, put together as one rule."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpuopt.cached import cached_property
from gpuopt.rules.base import Array, Rule
from gpuopt.rules.formula import returned
from gpuopt.rules.hyper import Hyperparameter, unknown
from gpuopt.rules.lifted import applied
from gpuopt.rules.pairs import Pair
from gpuopt.rules.slots import Leaf, Like, Part, Real, Shared, Slot, starts
from gpuopt.transforms.base import Transform

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gpuopt.rules.formula import Formula


def chain(*members: Transform | Rule) -> Chain:
    """Put transforms and one rule together; the result is a rule.

    First each transform's `Transform.before` changes the parameter and the gradient, in the order of the chain; then the rule
    makes its update; then each transform's `Transform.after` changes the new parameter. All are compiled together into one loop
    over memory.

    Parameters
    ----------
    *members
        Any number of transforms and one rule. A chain among them stands for its members.

    Raises
    ------
    TypeError
        If a member is neither a rule nor a transform.
    ValueError
        If there is no rule, or more than one; if a transform that only works before an update stands after the rule.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt
    >>> rule = gpuopt.chain(gpuopt.L2(0.1), gpuopt.SGD(lr=1.0), gpuopt.NonNegative(), gpuopt.EMA(0.5))
    >>> w = np.array([1.0, 2.0])
    >>> opt = gpuopt.Optimizer(w, rule)
    >>> opt.step(np.array([1.0, 1.0]))
    >>> w
    array([0. , 0.8])
    >>> opt.tune(lr=0.1, **{"EMA.decay": 0.9})
    >>> opt.rule.name, opt.lr
    ('chain(L2, SGD, NonNegative, EMA)', 0.1)

    """
    flat: list[Any] = []
    for member in members:
        flat += member.members if isinstance(member, Chain) else [member]
    for member in flat:
        if not isinstance(member, Transform | Rule):
            given = f"{member.__name__}, a class" if isinstance(member, type) else repr(member)
            raise TypeError(f"chain: {given:.80}, expected rules and transforms, such as EMA(0.999)")
        if isinstance(member, Transform) and all(
            getattr(type(member), name) is getattr(Transform, name) for name in ("before", "after", "evaluation")
        ):
            raise TypeError(f"chain: {member.name} defines neither before nor after, expected a transform that does")
    rules = [i for i, member in enumerate(flat) if isinstance(member, Rule)]
    if len(rules) != 1:
        there = ", ".join(flat[i].name for i in rules) or "no rule"
        raise ValueError(f"chain: {there} among {len(flat)} members, expected one rule; the others are transforms")
    for member in flat[rules[0] :]:
        if isinstance(member, Transform) and not _works_after(member):
            raise ValueError(
                f"chain: {member.name} stands after {flat[rules[0]].name}; it works before an update, put it there"
            )
    return Chain(tuple(flat))


@dataclass(frozen=True, repr=False, init=False)
class Chain(Rule):
    """Transforms and one rule; made by `chain`.

    Hyperparameters of the rule keep their names, those of a transform are called ``"EMA.decay"``; slots of all members
    are called ``"EMA.average"``. A second member of a class is ``"EMA2"``.
    """

    members: tuple[Any, ...]

    def __init__(self, members: tuple[Any, ...], **changed: Any) -> None:
        object.__setattr__(self, "members", members)
        by_member: dict[str, dict[str, Any]] = {}
        for name, value in changed.items():
            if name not in self.hyperparameters():
                raise unknown(self.name, name, self.hyperparameters())
            prefix, own = self._split(name)
            by_member.setdefault(prefix, {})[own] = value
        if changed:
            new = [dataclasses.replace(own, **by_member.get(name, {})) for name, own in self._named.items()]
            object.__setattr__(self, "members", tuple(new))
            vars(self).pop("_named")

    def __repr__(self) -> str:
        return f"chain({', '.join(map(repr, self.members))})"

    def __getattr__(self, name: str) -> Any:
        """A hyperparameter by its name, such as ``chain.lr``."""
        if name.startswith("_") or name == "members" or name not in self.hyperparameters():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        prefix, own = self._split(name)
        return getattr(self._named[prefix], own)

    @cached_property
    def _named(self) -> dict[str, Any]:
        """Members by name; a second one of a class is ``"EMA2"``."""
        named: dict[str, Any] = {}
        for member in self.members:
            same = sum(other.name == member.name for other in named.values())
            named[member.name + (str(same + 1) if same else "")] = member
        return named

    @property
    def rule(self) -> Rule:
        """The rule among the members."""
        return next(member for member in self.members if isinstance(member, Rule))

    @property
    def name(self) -> str:
        """The members' names."""
        return f"chain({', '.join(member.name for member in self.members)})"

    @property
    def slots(self) -> Mapping[str, Slot]:
        """Slots of all members."""
        return {
            f"{name}.{slot}": self._renamed(start, name, member)
            for name, member in self._named.items()
            for slot, start in starts(member.slots).items()
        }

    def part(self, slot: str) -> Part:
        """See `Rule.part`."""
        name, _, own = slot.partition(".")
        found: Part = self._named[name].part(own)
        return found

    def unfit(self, shape: tuple[int, ...]) -> str:
        """The reason of the first member that does not apply; see `Rule.unfit`."""
        return next((why for member in self.members if (why := member.unfit(shape))), "")

    @property
    def carried(self) -> Mapping[str, float]:
        """Carried numbers of all members."""
        return {f"{name}.{key}": x for name, member in self._named.items() for key, x in member.carried.items()}

    def hyperparameters(self) -> tuple[str, ...]:  # type: ignore[override]
        """Names: the rule's, and ``"EMA.decay"`` of a transform."""
        return (
            *self.rule.hyperparameters(),
            *(
                f"{name}.{own}"
                for name, member in self._named.items()
                if not isinstance(member, Rule)
                for own in member.hyperparameters()
            ),
        )

    def hyperparameter(self, name: str) -> Hyperparameter:
        """See `Rule.hyperparameter`."""
        prefix, own = self._split(name)
        found: Hyperparameter = self._named[prefix].hyperparameter(own)
        return found

    def at(self, step: int, given: Mapping[str, float] | None = None) -> dict[str, float]:
        """See `Rule.at`."""
        h = self._at(self._rule_name, step, given, {})
        lr = {"lr": h["lr"]} if "lr" in h else {}
        for name, member in self._named.items():
            if not isinstance(member, Rule):
                h |= {f"{name}.{own}": x for own, x in self._at(name, step, given, lr).items() if own != "t"}
        for name in self.carried:
            if name.startswith(f"{self._rule_name}."):
                h[name] = h[name.rpartition(".")[2]]
        return h

    def update(self, xp: Any, p: Array, g: Array, s: Any, h: Any) -> tuple[Array, dict[str, Array]]:
        """See `Rule.update`."""
        old, slots = p, {name: _Part(s, f"{name}.") for name in self._named}
        new_slots: dict[str, Array] = {}

        def keep(name: str, new: dict[str, Array]) -> None:
            for slot, value in new.items():
                new_slots[f"{name}.{slot}"] = value
                vars(slots[name])[slot] = value

        for name, member in self._named.items():
            if isinstance(member, Transform):
                found = applied(member, member.before, xp, p, g, slots[name], _Part(h, f"{name}."))
                new_p, new_g, new = returned(f"{member.name}.before", found, "p", "g", "slots")
                p = _like(p, new_p, f"{member.name}.before", "p", "parameter")
                g = _like(g, new_g, f"{member.name}.before", "g", "gradient")
                keep(name, new)
        found = applied(self.rule, self.rule.update, xp, p, g, slots[self._rule_name], h)
        new_p, new = returned(f"{self.rule.name}.update", found, "p", "slots")
        p = _like(p, new_p, f"{self.rule.name}.update", "p", "parameter")
        keep(self._rule_name, new)
        for name, member in self._named.items():
            if isinstance(member, Transform):
                found = applied(member, member.after, xp, old, p, g, slots[name], _Part(h, f"{name}."))
                new_p, new = returned(f"{member.name}.after", found, "p", "slots")
                p = _like(p, new_p, f"{member.name}.after", "p", "parameter")
                keep(name, new)
        return p, new_slots

    @property
    def evaluates(self) -> bool:
        """Whether a member does."""
        return any(member.evaluates for member in self.members)

    def evaluation(self, xp: Any, p: Array, s: Any, h: Any) -> Array:
        """Return the average of the last member that keeps one, within the constraints of the whole chain, else ``p``."""
        found = applied(self.rule, self.rule.evaluation, xp, p, _Part(s, f"{self._rule_name}."), h)
        parts = [
            (member, _Part(s, f"{name}."), _Part(h, f"{name}."))
            for name, member in self._named.items()
            if isinstance(member, Transform)
        ]
        for member, slots, numbers in parts:
            found = applied(member, member.evaluation, xp, found, slots, numbers)
        if found is p:
            return p
        for member, slots, numbers in parts:
            if member.projects:
                found, _ = applied(member, member.after, xp, p, found, found, slots, numbers)
        return found

    @cached_property
    def _rule_name(self) -> str:
        return next(name for name, member in self._named.items() if isinstance(member, Rule))

    def _split(self, name: str) -> tuple[str, str]:
        prefix, _, own = name.rpartition(".")
        return prefix or self._rule_name, own

    def _renamed(self, start: Slot, name: str, member: Formula) -> Slot:
        """The start of a slot, with hyperparameters under their names in the chain."""
        if isinstance(start, Real | Leaf | Shared) and isinstance(start.start, Like):
            renamed: Any = self._renamed(start.start, name, member)
            return type(start)(renamed)
        if not isinstance(start, Like) or start.source == "p" or isinstance(member, Rule):
            return start
        own = start.source in member.hyperparameters()
        return Like(f"{name}.{start.source}") if own else start

    def _at(self, name: str, step: int, given: Mapping[str, float] | None, lr: dict[str, float]) -> dict[str, float]:
        member = self._named[name]
        carried = {own: given[f"{name}.{own}"] for own in member.carried} if given is not None else {}
        found: dict[str, float] = member.at(step, lr | carried if lr or carried else None)
        return found


class _Part:
    """The attributes of one member, out of the slots or hyperparameters of the whole chain."""

    def __init__(self, whole: Any, prefix: str) -> None:
        vars(self).update(_whole=whole, _prefix=prefix)

    def __getattr__(self, name: str) -> Any:
        whole, prefix = (vars(self)[part] for part in ("_whole", "_prefix"))
        return getattr(whole, "t" if name == "t" else prefix + name)


def _like(old: Any, new: Any, what: str, name: str, meaning: str) -> Any:
    """Return an array that a member returned; raise if its shape differs, before broadcasting would hide that."""
    one, other = (x.re if isinstance(x, Pair) else x for x in (old, new))
    if hasattr(type(one), "shape") and hasattr(type(other), "shape"):
        if tuple(other.shape) != tuple(one.shape):
            raise ValueError(f"{what} returned {name} with shape {tuple(other.shape)}, expected {tuple(one.shape)}")
    elif type(other) is not type(one):  # a number where an array is expected
        raise TypeError(f"{what} returned a number for {name}, expected an array like the {meaning}")
    return new


def _works_after(member: Transform) -> bool:
    return type(member).after is not Transform.after or type(member).before is Transform.before
