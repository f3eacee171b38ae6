"""Conversion of state dicts from and to ``torch.optim``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gpuopt.arrays import to_numpy
from gpuopt.functional import init
from gpuopt.rules.slots import starts
from gpuopt.transforms import Chain
from gpuopt.transforms.decay import L2, WeightDecay
from gpuopt.transforms.gradient import Maximize

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gpuopt.optimizer import Optimizer
    from gpuopt.rules.base import Rule


@dataclass(frozen=True)
class Names:
    """Torch's names for a rule, its slots and its hyperparameters; mappings are from torch's name to ours.

    Attributes
    ----------
    algorithm
        Name of torch's optimizer.
    slots
        Arrays of the state. Several names may stand for one slot; a parameter has one of them.
    hyperparameters
        Hyperparameters of a group: one of the rule's, several for a tuple, or a function of the rule.
    carried
        Numbers of the state that are `Rule.carried`.
    ahead
        Numbers of the state that torch computes for the next step.

    """

    algorithm: str
    slots: Mapping[str, str]
    hyperparameters: Mapping[str, str | tuple[str, ...] | Callable[[Any], Any]]
    carried: Mapping[str, str] = field(default_factory=dict)
    ahead: Mapping[str, str] = field(default_factory=dict)


MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}
ADAM: dict[str, str | tuple[str, ...]] = {"lr": "lr", "betas": ("beta1", "beta2"), "eps": "eps"}
NAMES: dict[str, Names] = {
    "SGD": Names("SGD", {"momentum_buffer": "v"}, {name: name for name in ("lr", "momentum", "dampening", "nesterov")}),
    "Adam": Names("Adam", {**MOMENTS, "max_exp_avg_sq": "largest"}, {**ADAM, "amsgrad": "amsgrad"}),
    "AdamW": Names(
        "AdamW",
        {**MOMENTS, "max_exp_avg_sq": "largest"},
        {**ADAM, "amsgrad": "amsgrad", "weight_decay": "weight_decay"},
    ),
    "NAdam": Names("NAdam", MOMENTS, {**ADAM, "momentum_decay": "momentum_decay"}, carried={"mu_product": "product"}),
    "RAdam": Names("RAdam", MOMENTS, {**ADAM, "eps": "eps_hat"}),
    "AdaMax": Names("Adamax", {"exp_avg": "m", "exp_inf": "u"}, {**ADAM, "eps": "eps_inside"}),
    "AdaDelta": Names("Adadelta", {"square_avg": "v", "acc_delta": "u"}, {"lr": "lr", "rho": "rho", "eps": "eps"}),
    "AdaGrad": Names("Adagrad", {"sum": "cache"}, {"lr": "lr", "eps": "eps", "initial_accumulator_value": "initial"}),
    "RMSProp": Names(
        "RMSprop",
        {"square_avg": "cache", "momentum_buffer": "v", "grad_avg": "average"},
        {"lr": "lr", "alpha": "rho", "eps": "eps", "momentum": "momentum", "centered": "centered"},
    ),
    "Rprop": Names(
        "Rprop",
        {"prev": "before", "step_size": "step"},
        {"lr": "lr", "etas": ("shrink", "grow"), "step_sizes": ("smallest", "largest")},
    ),
    "ASGD": Names(
        "ASGD",
        {"ax": "average"},
        {"lr": "lr", "lambd": "decay", "alpha": "power", "t0": "start"},
        ahead={"eta": "eta", "mu": "weight"},
    ),
    "Adafactor": Names(
        "Adafactor",
        {"row_var": "r", "col_var": "c", "variance": "c"},
        {
            "lr": "lr",
            "d": "clip",
            "weight_decay": "weight_decay",
            "beta2_decay": lambda rule: -rule.decay,
            "eps": lambda rule: (None if rule.machine_eps else rule.floor, rule.smallest),
        },
    ),
    "Muon": Names(
        "Muon",
        {"momentum_buffer": "m"},
        {
            **{name: name for name in ("lr", "weight_decay", "momentum", "nesterov")},
            "eps": "floor",
            "ns_steps": "iterations",
            "ns_coefficients": ("a", "b", "c"),
            "adjust_lr_fn": lambda rule: "match_rms_adamw" if rule.rms else None,
        },
    ),
}
"""Torch's names, by rule."""

MACHINERY = {"foreach": None, "capturable": False, "differentiable": False}


def parts(rule: Rule) -> tuple[Names, str]:
    """Return torch's names for a rule, and the prefix of its slots in a chain.

    Raises
    ------
    ValueError
        If torch has no such optimizer.

    """
    own, prefix = (rule.rule, f"{rule.rule.name}.") if isinstance(rule, Chain) else (rule, "")
    if own.name not in NAMES:
        raise ValueError(f"{rule.name}: torch has no such optimizer, expected a rule of gpuopt.like.torch")
    return NAMES[own.name], prefix


def group_of(rule: Rule, step: int, makers: Mapping[str, Callable[..., Rule]]) -> dict[str, Any]:
    """Return torch's hyperparameters of a rule at a step.

    Raises
    ------
    ValueError
        If torch's optimizer with these hyperparameters differs from the rule.

    """
    names, _ = parts(rule)
    now = {name: x for name, x in rule.at(step).items() if name in rule.hyperparameters()}
    rule = dataclasses.replace(rule, **now)
    own = rule.rule if isinstance(rule, Chain) else rule
    group: dict[str, Any] = {}
    for name, ours in names.hyperparameters.items():
        if callable(ours):
            group[name] = ours(own)
        else:
            group[name] = tuple(getattr(own, n) for n in ours) if isinstance(ours, tuple) else getattr(own, ours)
    for member in rule.members if isinstance(rule, Chain) else ():
        match member:
            case L2(rate):
                group |= {"weight_decay": rate}
            case WeightDecay(rate):
                group |= {"weight_decay": rate, "decoupled_weight_decay": True}
            case Maximize():
                group |= {"maximize": True}
    if makers[names.algorithm](**group) != rule:
        raise ValueError(f"{rule!r}: not what torch.optim.{names.algorithm} does; expected a rule of gpuopt.like.torch")
    return {"weight_decay": 0, "maximize": False, "lr_decay": 0, **MACHINERY, **group}


def ordered(paths: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """Return the paths of leaves in torch's order.

    Raises
    ------
    ValueError
        If the order is unknown, or names other leaves.

    """
    if names is None:
        if len(paths) > 1:
            raise ValueError(
                "names: None, expected the leaves' paths in torch's order, as in [name for name, _ in "
                "model.named_parameters()]"
            )
        return list(paths)
    unknown = [name for name in names if name not in set(paths)]
    if unknown or len(set(names)) < len(names):
        raise ValueError(
            f"names: {unknown or list(names)}, expected each of {', '.join(map(repr, paths))} once at most"
        )
    return list(names)


def read(opt: Optimizer, state: Mapping[str, Any], names: Sequence[str] | None, steps: int | None) -> None:
    """See `gpuopt.like.torch.load_state_dict`."""
    groups: list[Any] = state["param_groups"]
    if names is None and all("param_names" in group for group in groups):
        names = [name for group in groups for name in group["param_names"]]
    own = opt.state_dict()
    order = ordered(list(own["params"]), names)
    numbers = [number for group in groups for number in group["params"]]
    if len(numbers) != len(order):
        raise ValueError(f"names: {len(order)} leaves, expected one for each of torch's {len(numbers)} parameters")
    theirs = {path: state["state"].get(number, {}) for path, number in zip(order, numbers, strict=True)}

    counted = {path: int(x["step"]) for path, x in theirs.items() if "step" in x}
    if steps is None:
        if len(set(counted.values())) > 1:
            raise ValueError(f"step: {counted}, expected one for all, as leaves have here; or give steps=")
        steps = next(iter(counted.values()), max(own["steps"], int(any(theirs.values()))))

    rules = {path: opt.rules[pattern] for pattern, path in _patterns(opt)}
    fresh: Any = None
    slots: dict[str, dict[str, Any]] = {}
    for path, rule in rules.items():
        slots[path] = {}
        if rule is None:
            continue
        known, prefix = parts(rule)
        for name in starts(rule.slots):
            found = [theirs.get(path, {}).get(t) for t, ours in known.slots.items() if prefix + ours == name]
            given = next((x for x in found if x is not None), None)
            if given is None:
                fresh = fresh or init(opt.rule, opt.params).slots
                given = dict(_leaves(opt, fresh[name]))[path]
            slots[path][name] = given
        for there, ours in known.carried.items():
            if there in theirs.get(path, {}):
                pattern = next(p for p, leaf in _patterns(opt) if leaf == path)
                own["rules"][pattern]["carried"][prefix + ours] = float(theirs[path][there])
    opt.load_state_dict({**own, "steps": steps, "accumulated": 0, "state": slots})


def written(opt: Optimizer, names: Sequence[str] | None, makers: Mapping[str, Callable[..., Rule]]) -> dict[str, Any]:
    """See `gpuopt.like.torch.state_dict`."""
    import torch

    own = opt.state_dict()
    numbers = {path: i for i, path in enumerate(ordered(list(own["params"]), names))}
    by_pattern: dict[str, list[int]] = {}
    state: dict[int, dict[str, Any]] = {}
    for pattern, path in sorted(_patterns(opt), key=lambda pair: numbers.get(pair[1], -1)):
        rule = opt.rules[pattern]
        if path not in numbers:
            continue
        by_pattern.setdefault(pattern, []).append(numbers[path])
        if rule is None or not opt.steps:
            continue
        known, prefix = parts(rule)
        entry = state[numbers[path]] = {"step": torch.tensor(float(opt.steps))}
        h = rule.at(opt.steps, own["rules"][pattern].get("carried"))
        entry |= {there: torch.tensor(h[ours]) for there, ours in known.ahead.items()}
        carried = own["rules"][pattern].get("carried", {})
        entry |= {there: torch.tensor(carried[prefix + ours]) for there, ours in known.carried.items()}
        for there, ours in known.slots.items():
            if (slot := prefix + ours) in own["state"][path]:
                entry[there] = torch.tensor(to_numpy(own["state"][path][slot]))
    groups = [
        {**(group_of(rule, opt.steps, makers) if (rule := opt.rules[pattern]) else {}), "params": members}
        for pattern, members in by_pattern.items()
    ]
    return {"state": state, "param_groups": groups}


def _patterns(opt: Optimizer) -> list[tuple[str, str]]:
    """Return pattern and path of each leaf."""
    return [(leaf.pattern, leaf.path) for leaf in opt._leaves()]


def _leaves(opt: Optimizer, tree: Any) -> list[tuple[str, Any]]:
    """Return path and leaf of a tree like the parameters."""
    return list(zip(opt._tree.paths, opt._tree.leaves_of(tree, "state"), strict=True))
