"""Parameter groups: which rule updates which leaf, by globs of the leaves' paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import translate
from glob import escape
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from gpuopt.rules import RULES, Rule
from gpuopt.rules.formula import Formula
from gpuopt.suggest import did_you_mean, listed

if TYPE_CHECKING:
    from gpuopt.trees import Tree

Rules: TypeAlias = Rule | Mapping[str, Rule | None]
"""One rule, or a mapping of globs to rules; None freezes the leaves of a glob."""


@dataclass(frozen=True)
class Frozen(Rule):
    """The rule of frozen leaves, for which users write None."""

    def update(self, xp: Any, p: Any, g: Any, s: Any, h: Any) -> tuple[Any, dict[str, Any]]:  # noqa: ARG002
        """See :meth:`Rule.update`."""
        return p, {}


def shown(rule: Rule) -> Rule | None:
    """Return a rule as users write it: None for `Frozen`."""
    return None if isinstance(rule, Frozen) else rule


class Groups(NamedTuple):
    """The rule of each leaf.

    Attributes
    ----------
    patterns, rules
        The glob and the rule of each group.
    of_leaf
        Index of the group of each leaf.

    """

    patterns: list[str]
    rules: list[Rule]
    of_leaf: list[int]


def match(rule: Rules, tree: Tree) -> Groups:
    """Give each leaf the rule of the first glob that matches its path.

    Parameters
    ----------
    rule
        One rule for all leaves, or several by glob, as of `fnmatch.fnmatchcase`; None is a rule that changes nothing.
    tree
        The nesting whose leaves get a rule.

    Raises
    ------
    TypeError
        If a rule is no `Rule`, or a glob no string.
    ValueError
        If a leaf has no rule, or a glob gets no leaf: none matches, or all have the rule of a glob before it.

    """
    given: Any = rule
    by_pattern: Any = {"*": rule} if isinstance(rule, Rule) else rule
    if not isinstance(by_pattern, Mapping):
        if isinstance(rule, type) and issubclass(rule, Rule):
            hint = f" (did you mean {rule.__name__}()?)"
        elif isinstance(given, Formula):
            hint = f"; a transform belongs around one: gpuopt.chain(gpuopt.Adam(), {rule!r:.200})"
        else:
            hint = did_you_mean(rule, RULES, shown="{}()".format) if isinstance(given, str) else ""
        raise TypeError(f"rule: {rule!r}, expected a rule such as Adam(), or a dict of rules by pattern{hint}")
    patterns = list(by_pattern)
    of_leaf: list[int | None] = [None] * len(tree.paths)
    for group, (pattern, own) in enumerate(by_pattern.items()):
        if not isinstance(pattern, str) or not isinstance(own, Rule | None):
            expected = "a rule such as Adam() by a glob such as '*.w', or None to leave leaves as they are"
            raise TypeError(f"rule: {{{pattern!r}: {own!r}}}, expected {expected}")
        matches = re.compile(translate(pattern)).match
        matching = [i for i, path in enumerate(tree.paths) if matches(path)]
        if not matching:
            hint = did_you_mean(pattern, tree.paths)
            if pattern in tree.paths:
                hint = (
                    f", for in a glob '[' begins a set of characters; {escape(pattern)!r} matches the leaf of that path"
                )
            there = listed(tree.paths, shown=repr)
            raise ValueError(f"rule: the pattern {pattern!r} matches no leaf{hint}; there are {there}")
        free = [i for i in matching if of_leaf[i] is None]
        if not free:
            before = listed(dict.fromkeys(patterns[k] for i in matching if (k := of_leaf[i]) is not None), shown=repr)
            raise ValueError(
                f"rule: the pattern {pattern!r} gets no leaf, all that it matches have the rule of {before}; put it before"
            )
        for i in free:
            of_leaf[i] = group
    for i, first in enumerate(of_leaf):
        if first is None:
            name, path = tree.name(i, "params"), tree.paths[i]
            raise ValueError(
                f"rule: no pattern of {patterns} matches {name}, whose path is {path!r}; add one, '*' for all others"
            )
    rules = [Frozen() if own is None else own for own in by_pattern.values()]
    return Groups(patterns, rules, [group for group in of_leaf if group is not None])
