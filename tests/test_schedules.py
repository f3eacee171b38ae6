"""Schedules: their numbers, their shapes, what they are written as, what they refuse."""

import copy
import inspect
import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuopt
from gpuopt import schedules
from gpuopt.schedules import Schedule

WARM_COSINE = schedules.linear_warmup(schedules.cosine(0.3, steps=60), warmup=10, start=0.01)
RESTARTS = schedules.cosine(1.0, steps=70, final=0.2, cycles=3, growth=2)  # of 10, 20 and 40 steps

VALUES: list[tuple[Schedule, dict[int, float]]] = [
    (schedules.constant(0.1), {0: 0.1, 10**9: 0.1}),
    (schedules.inverse_time(1.0, 0.1), {0: 1.0, 1: 0.9090909090909091, 10: 0.5, 90: 0.1}),
    (schedules.inverse_time(0.05, decay=5e-7), {0: 0.05, 10_000: 0.05 / 1.005}),
    (schedules.exponential(1.0, decay=0.5), {0: 1.0, 1: 0.5, 10: 2.0**-10}),
    (schedules.exponential(0.1, decay=0.01, every=10), {0: 0.1, 5: 0.01, 10: 0.001}),
    (schedules.exponential(1e-3, decay=10, every=100), {0: 1e-3, 50: 1e-3 * math.sqrt(10), 300: 1.0}),
    (schedules.step(0.1, factor=0.5, every=10), {0: 0.1, 9: 0.1, 10: 0.05, 19: 0.05, 20: 0.025, 100: 0.1 / 1024}),
    (schedules.piecewise(0.1, [3, 5], [0.03, 0.01]), {0: 0.1, 2: 0.1, 3: 0.03, 4: 0.03, 5: 0.01, 100: 0.01}),
    (schedules.piecewise(0.1, [], []), {0: 0.1, 100: 0.1}),
    (schedules.polynomial(1.0, steps=100), {0: 1.0, 25: 0.75, 100: 0.0, 1000: 0.0}),
    (schedules.polynomial(1.0, steps=10, final=0.5, power=2), {0: 1.0, 5: 0.625, 10: 0.5, 11: 0.5}),
    (schedules.polynomial(0.0, steps=4, final=1.0), {0: 0.0, 1: 0.25, 4: 1.0, 5: 1.0}),
    (schedules.linear_warmup(1.0, warmup=4), {0: 0.0, 1: 0.25, 3: 0.75, 4: 1.0, 100: 1.0}),
    (schedules.linear_warmup(1.0, warmup=4, start=0.2), {0: 0.2, 2: 0.6, 4: 1.0}),
    (WARM_COSINE, {0: 0.01, 5: 0.155, 10: 0.3, 40: 0.15, 70: 0.0, 71: 0.0}),
    (schedules.cosine(1.0, steps=100), {0: 1.0, 25: 0.5 + math.sqrt(0.125), 50: 0.5, 100: 0.0, 101: 0.0}),
    (schedules.cosine(1.0, steps=4, final=0.5), {1: 0.75 + math.sqrt(0.03125), 2: 0.75, 4: 0.5}),
    (schedules.cosine(1.0, steps=30, cycles=3), {0: 1.0, 5: 0.5, 10: 1.0, 15: 0.5, 20: 1.0, 25: 0.5, 30: 0.0}),
    (RESTARTS, {0: 1.0, 5: 0.6, 10: 1.0, 20: 0.6, 30: 1.0, 50: 0.6, 70: 0.2, 1000: 0.2}),
    (schedules.cosine(1.0, steps=5, cycles=2), {0: 1.0, 1: (1 + math.cos(0.4 * math.pi)) / 2}),
    (schedules.one_cycle(1.0, steps=100), {0: 0.04, 15: 0.52, 30: 1.0, 65: 0.500002, 100: 4e-6, 101: 4e-6}),
    (schedules.one_cycle(1.0, 1, pct_start=0.5, div_factor=2, final_div_factor=5), {0: 0.5, 1: 0.1}),
    (
        schedules.join([schedules.constant(0.5), schedules.inverse_time(1.0, 1.0), RESTARTS], boundaries=[3, 7]),
        {0: 0.5, 2: 0.5, 3: 1.0, 4: 0.5, 6: 0.25, 7: 1.0, 12: 0.6, 77: 0.2},
    ),
    (schedules.join([RESTARTS], []), {0: 1.0, 5: 0.6}),
    (schedules.scaled(RESTARTS, 0.5), {0: 0.5, 5: 0.3, 1000: 0.1}),
    (schedules.plateau(0.1, factor=0.5), {0: 0.1, 1000: 0.1}),
    (schedules.plateau(0.1, factor=0.5, final=0.02, falls=2, best=1.5), {0: 0.025}),
    (schedules.plateau(0.1, factor=0.5, final=0.02, falls=3), {0: 0.02}),
]
EXAMPLES = [schedule for schedule, _ in VALUES]


def test_every_schedule_is_in_the_table() -> None:
    public = {name for name in schedules.__all__ if name in schedules.SCHEDULES}
    assert {schedule.name for schedule in EXAMPLES} == public
    assert public == {
        *("constant", "inverse_time", "exponential", "step", "piecewise"),
        *("polynomial", "linear_warmup", "cosine", "one_cycle", "join", "scaled", "plateau"),
    }


@pytest.mark.parametrize(
    ("schedule", "step", "expected"),
    [(schedule, step, expected) for schedule, table in VALUES for step, expected in table.items()],
)
def test_value(schedule: Schedule, step: int, expected: float) -> None:
    value = schedule(step)
    assert type(value) is float
    assert value == pytest.approx(expected, rel=1e-14, abs=1e-16)


def test_round_numbers_to_the_last_bit() -> None:
    assert schedules.inverse_time(1.0, 0.1)(1) == 0.9090909090909091
    assert schedules.inverse_time(1.0, decay=0.1)(1) == 0.9090909090909091
    assert schedules.linear_warmup(1.0, warmup=10)(1) == schedules.polynomial(1.0, steps=10)(9) == 0.1


# The same schedule in torch, as (ours, torch.optim.lr_scheduler class, its arguments); the lr of the optimizer is 0.1.
TORCH: list[tuple[Schedule, str, dict[str, Any]]] = [
    (schedules.exponential(0.1, decay=0.97), "ExponentialLR", {"gamma": 0.97}),
    (schedules.step(0.1, factor=0.3, every=7), "StepLR", {"step_size": 7, "gamma": 0.3}),
    (schedules.piecewise(0.1, [5, 20], [0.05, 0.025]), "MultiStepLR", {"milestones": [5, 20], "gamma": 0.5}),
    (schedules.polynomial(0.1, steps=33, power=1.7), "PolynomialLR", {"total_iters": 33, "power": 1.7}),
    (schedules.linear_warmup(0.1, warmup=11, start=0.02), "LinearLR", {"start_factor": 0.2, "total_iters": 11}),
    (schedules.cosine(0.1, steps=70, final=0.01), "CosineAnnealingLR", {"T_max": 70, "eta_min": 0.01}),
    (schedules.cosine(0.1, steps=100, cycles=5), "CosineAnnealingWarmRestarts", {"T_0": 20}),
    (schedules.cosine(0.1, 70, cycles=3, growth=2), "CosineAnnealingWarmRestarts", {"T_0": 10, "T_mult": 2}),
    (
        schedules.cosine(0.1, 130, 0.01, cycles=3, growth=3),
        "CosineAnnealingWarmRestarts",
        {"T_0": 10, "T_mult": 3, "eta_min": 0.01},
    ),
]


@pytest.mark.peers
@pytest.mark.parametrize(("schedule", "name", "arguments"), TORCH)
def test_agrees_with_torch(schedule: Schedule, name: str, arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = getattr(torch.optim.lr_scheduler, name)(optimizer, **arguments)
    for step in range(70):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12, abs=1e-16)
        optimizer.step()
        scheduler.step()


@pytest.mark.peers
@pytest.mark.parametrize(("steps", "pct_start"), [(100, 0.3), (64, 0.25), (10, 0.5)])
def test_one_cycle_agrees_with_optax(steps: int, pct_start: float) -> None:
    optax = pytest.importorskip("optax")
    theirs = optax.cosine_onecycle_schedule(steps, 0.1, pct_start=pct_start, div_factor=20.0, final_div_factor=500.0)
    ours = schedules.one_cycle(0.1, steps, pct_start, div_factor=20.0, final_div_factor=500.0)
    for step in range(steps + 3):
        assert ours(step) == pytest.approx(float(theirs(step)), rel=1e-4, abs=1e-7)  # theirs is float32


@pytest.mark.peers
def test_one_cycle_is_torchs_with_the_ends_a_step_later() -> None:
    """torch goes up in ``pct_start * total_steps - 1`` steps and down in the rest of ``total_steps - 1``."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=101, pct_start=0.5, cycle_momentum=False
    )
    top = 0.5 * 101 - 1
    schedule = schedules.one_cycle(0.1, steps=100, pct_start=top / 100)
    for step in range(101):
        assert schedule(step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        if step < 100:
            scheduler.step()


# Schedules that are told a metric

METRICS = [
    5.0,
    4.0,
    4.5,
    3.9999,
    3.9998,
    4.0,
    math.nan,
    3.0,
    3.0,
    3.0,
    3.0,
    3.0,
    2.0,
    2.0,
    2.0,
    2.0,
    2.0,
    2.0,
    2.0,
    1.0,
]
PLATEAUS: list[dict[str, Any]] = [
    {"patience": 0},
    {"patience": 1},
    {"patience": 2, "cooldown": 2, "factor": 0.5},
    {"patience": 1, "cooldown": 1, "threshold": 0.3},
    {"patience": 0, "maximize": True, "factor": 0.25, "final": 1e-4},
]


@pytest.mark.peers
@pytest.mark.parametrize("arguments", PLATEAUS, ids=str)
def test_a_plateau_is_that_of_torch(arguments: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    theirs = {"min_lr": arguments.get("final", 0), "mode": "max" if arguments.get("maximize") else "min", "eps": 0}
    kept = {name: x for name, x in arguments.items() if name not in ("final", "maximize")}
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **kept, **theirs)
    ours = schedules.plateau(0.1, **arguments)
    for metric in METRICS:
        scheduler.step(metric)
        ours = ours.told(metric)
        assert ours(0) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_a_plateau_by_hand() -> None:
    ours, values = schedules.plateau(1.0, factor=0.5, patience=1, cooldown=1, threshold=0.0), []
    for metric in (3.0, 3.0, 3.0, 3.0, 2.0, math.nan, math.inf, 1.0, -1.0, -1.0, -0.5):
        ours = ours.told(metric)
        values.append(ours(0))
    assert values == [1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.125]
    assert schedules.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours
    assert schedules.parse(repr(ours), initial=9.0, steps=9) == ours


def test_a_schedule_with_a_plateau_in_it_listens() -> None:
    plateau = schedules.plateau(1.0, factor=0.5, patience=0)
    inside = schedules.linear_warmup(schedules.join([plateau, RESTARTS], [50]), warmup=10)
    heard = inside.told(1.0).told(1.0)
    assert (heard(9), heard(10), heard(60)) == (0.45, 0.5, 1.0)
    assert RESTARTS.told(1.0) is RESTARTS


# Properties

rates = st.floats(1e-8, 1e3)
steps = st.integers(0, 2000)
lengths = st.integers(1, 1000)


@given(rates, st.floats(0, 1e3), st.floats(0.01, 1), lengths, st.floats(0.1, 5), steps)
def test_decays_fall_and_stay_within_their_ends(
    initial: float, decay: float, factor: float, length: int, power: float, step: int
) -> None:
    for schedule in (
        schedules.inverse_time(initial, decay),
        schedules.exponential(initial, factor, length),
        schedules.step(initial, factor, length),
        schedules.polynomial(initial, length, 0.0, power),
        schedules.cosine(initial, length),
    ):
        assert schedule(0) == initial
        assert 0 <= schedule(step + 1) <= schedule(step) <= initial


@given(rates, rates, lengths, st.integers(1, 6), st.integers(1, 3), steps)
def test_cosine_stays_within_its_ends_and_restarts(
    initial: float, final: float, first: int, cycles: int, growth: int, step: int
) -> None:
    spans = [first * growth**cycle for cycle in range(cycles)]
    schedule = schedules.cosine(initial, sum(spans), final, cycles, growth)
    slack = 1e-15 * max(initial, final)
    assert min(initial, final) - slack <= schedule(step) <= max(initial, final) + slack
    assert [schedule(sum(spans[:cycle])) for cycle in range(cycles)] == [initial] * cycles
    assert schedule(sum(spans) + step) == final


@given(rates, lengths, st.floats(0.01, 0.99), st.floats(1.0, 1e3), st.floats(1.0, 1e6), steps)
def test_one_cycle_rises_once_and_falls_once(
    peak: float, length: int, pct_start: float, div: float, final_div: float, step: int
) -> None:
    schedule = schedules.one_cycle(peak, length, pct_start, div, final_div)
    slack = 1e-15 * peak
    assert peak / div / final_div - slack <= schedule(step) <= peak + slack
    if step + 1 <= pct_start * length:
        assert schedule(step) <= schedule(step + 1) + slack
    elif step >= pct_start * length:
        assert schedule(step) >= schedule(step + 1) - slack
    assert schedule(length + step) == peak / div / final_div


@given(rates, rates, lengths, steps)
def test_warmup_meets_what_follows(peak: float, start: float, warmup: int, step: int) -> None:
    after = schedules.cosine(peak, steps=500)
    schedule = schedules.linear_warmup(after, warmup, start)
    assert schedule(0) == start
    assert schedule(warmup) == peak
    assert abs(schedule(warmup) - schedule(warmup - 1)) <= 1.001 * abs(peak - start) / warmup + 1e-15 * max(peak, start)
    assert schedule(warmup + step) == after(step)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), steps)
def test_join_and_piecewise_agree(gaps: list[int], step: int) -> None:
    boundaries = np.cumsum(gaps).tolist()
    values = [float(index) for index in range(len(gaps) + 1)]
    joined = schedules.join([schedules.constant(value) for value in values], boundaries)
    assert (
        joined(step)
        == schedules.piecewise(values[0], boundaries, values[1:])(step)
        == sum(b <= step for b in boundaries)
    )


# Schedules as values

by_repr = pytest.mark.parametrize("schedule", EXAMPLES, ids=repr)


@by_repr
def test_written_and_read_back(schedule: Schedule) -> None:
    copies = [
        eval(repr(schedule), vars(schedules)),
        schedules.parse(repr(schedule), initial=7.0, steps=7),
        schedules.from_dict(json.loads(json.dumps(schedule.to_dict()))),
        pickle.loads(pickle.dumps(schedule)),
        copy.deepcopy(schedule),
    ]
    for other in copies:
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert repr(other) == repr(schedule)
        assert [other(step) for step in range(100)] == [schedule(step) for step in range(100)]
    assert list(schedule.arguments) == list(inspect.signature(schedules.SCHEDULES[schedule.name]).parameters)


def test_written_form() -> None:
    schedule = schedules.linear_warmup(schedules.inverse_time(1, decay=0.1), 100)
    assert repr(schedule) == "linear_warmup(peak=inverse_time(initial=1.0, decay=0.1), warmup=100, start=0.0)"
    assert schedule.to_dict() == {
        "schedule": "linear_warmup",
        "arguments": {
            "peak": {"schedule": "inverse_time", "arguments": {"initial": 1.0, "decay": 0.1}},
            "warmup": 100,
            "start": 0.0,
        },
    }


def test_equal_by_name_and_arguments() -> None:
    numpy_one: Any = np.float32(1)
    numpy_ten: Any = np.int64(10)
    assert schedules.step(1, 0.5, 10) == schedules.step(numpy_one, factor=0.5, every=numpy_ten)
    assert schedules.step(1.0, 0.5, 10) != schedules.step(1.0, 0.5, 11)
    assert schedules.step(1.0, 0.5, 10) != schedules.exponential(1.0, 0.5, 10)
    assert len({*EXAMPLES, *copy.deepcopy(EXAMPLES)}) == len(EXAMPLES)


def test_immutable() -> None:
    schedule = schedules.constant(0.1)
    with pytest.raises(AttributeError):
        schedule.name = "other"  # type: ignore[misc]
    schedule.arguments["value"] = 0.2
    assert schedule(0) == 0.1


@pytest.mark.parametrize("name", [name for name in schedules.__all__ if inspect.isfunction(getattr(schedules, name))])
def test_documented(name: str) -> None:
    function = getattr(schedules, name)
    assert len(function.__doc__) > 40
    if name in schedules.SCHEDULES:
        assert ">>> " in function.__doc__
        assert all(argument in function.__doc__ for argument in inspect.signature(function).parameters)
        assert "step" not in inspect.signature(function).parameters


@mock.patch.dict(schedules.SCHEDULES)
def test_a_schedule_of_ones_own() -> None:
    @schedules.schedule
    def square_root(step: int, initial: float, steps: schedules.Count, offset: int = 0) -> float:
        """Falls with the root."""
        return initial / math.sqrt(1 + (step + offset) / steps)

    assert square_root.__doc__ == "Falls with the root."
    assert square_root(1.0, steps=10)(30) == 0.5
    assert schedules.parse("square_root:offset=20", initial=1.0, steps=10) == square_root(1.0, 10, offset=20)
    assert schedules.from_dict(square_root(1.0, 10).to_dict()) == square_root(1.0, 10)
    with pytest.raises(ValueError, match="square_root: steps must be a positive integer, got 0"):
        square_root(1.0, 0)

    def cosine(step: int, initial: float) -> float:
        return initial

    with pytest.raises(ValueError, match=r"a schedule called 'cosine' exists already, in gpuopt\.schedules"):
        schedules.schedule(cosine)
    with pytest.raises(TypeError, match="untyped: annotate 'initial' with float, int"):
        schedules.schedule(_untyped("untyped"))


def _untyped(name: str) -> Callable[..., float]:
    def function(step, initial):  # type: ignore[no-untyped-def]
        return initial

    function.__name__ = name
    return function


# The command line


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("constant", schedules.constant(0.5)),
        ("cosine", schedules.cosine(0.5, 1000)),
        (" cosine ( ) ", schedules.cosine(0.5, 1000)),
        ("cosine:", schedules.cosine(0.5, 1000)),
        ("cosine:steps=10,final=1e-3", schedules.cosine(0.5, 10, 1e-3)),
        ("cosine:steps=1e2", schedules.cosine(0.5, 100)),
        ("cosine(0.25)", schedules.cosine(0.25, 1000)),
        ("cosine(0.25, 10)", schedules.cosine(0.25, 10)),
        ("one_cycle", schedules.one_cycle(0.5, 1000)),
        ("inverse_time:decay=1e-3", schedules.inverse_time(0.5, 1e-3)),
        ("inverse_time(decay=1e-3)", schedules.inverse_time(0.5, 1e-3)),
        ("inverse_time: decay = 1e-3, initial = 2", schedules.inverse_time(2.0, 1e-3)),
        ("polynomial:final=-1", schedules.polynomial(0.5, 1000, -1.0)),
        ("linear_warmup:warmup=100", schedules.linear_warmup(0.5, 100)),
        ("piecewise:boundaries=[100,200],values=[0.3,0.1]", schedules.piecewise(0.5, [100, 200], [0.3, 0.1])),
        ("piecewise:boundaries=(100,),values=(0.3,)", schedules.piecewise(0.5, [100], [0.3])),
        (
            "linear_warmup(cosine(steps=900), warmup=100)",
            schedules.linear_warmup(schedules.cosine(0.5, 900), 100),
        ),
        (
            "linear_warmup:peak=inverse_time(decay=0.1),warmup=9",
            schedules.linear_warmup(schedules.inverse_time(0.5, 0.1), 9),
        ),
        (
            "join([linear_warmup(warmup=5), constant], [5])",
            schedules.join([schedules.linear_warmup(0.5, 5), schedules.constant(0.5)], [5]),
        ),
    ],
)
def test_parse(text: str, expected: Schedule) -> None:
    assert schedules.parse(text, initial=0.5, steps=1000) == expected


KNOWN = "known: constant, inverse_time, exponential, step, piecewise, polynomial, cosine, one_cycle, linear_warmup, join, scaled, plateau"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("inverse_tim:decay=1", f"unknown schedule 'inverse_tim' (did you mean 'inverse_time'?); {KNOWN}"),
        ("xyz", f"unknown schedule 'xyz'; {KNOWN}"),
        ("open('file')", "unknown schedule 'open'"),
        ("join([cosin(), constant], [3])", "unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ("join([cosin, constant], [3])", "join: schedules must be one or more schedules, got ['cosin', constant"),
        (
            "cosine:fnal=3",
            "cosine: unknown argument 'fnal' (did you mean 'final'?); usage: cosine(initial, steps, final",
        ),
        ("cosine:1,2,initial=3", "cosine: multiple values for argument 'initial'; usage: cosine(initial, steps"),
        ("inverse_time", "inverse_time: missing a required argument: 'decay'; usage: inverse_time(initial, decay)"),
        ("inverse_time(1, 2, 3)", "inverse_time: too many positional arguments"),
        ("linear_warmup(cosine, warmup=9)", "cosine: missing a required argument: 'steps'"),
        ("cosine:steps=many", "cosine: steps must be a positive integer, got 'many'"),
        ("cosine:steps=nan", "cosine: steps must be a positive integer, got 'nan'"),
        ("cosine:final=1e999", "cosine: final must be a finite number, got inf"),
        ("cosine:steps", "cosine: initial must be a finite number, got 'steps'"),
        ("cosine:steps=True", "cosine: steps must be a positive integer, got True"),
        ("cosine:steps=cosine", "cosine: missing a required argument: 'steps'"),
        ("cosine:steps=constant", "cosine: steps must be a positive integer, got constant(value=0.5)"),
        ("piecewise:boundaries=100,values=0.1", "piecewise: boundaries must be increasing positive integers, got 100"),
        *((text, "cannot read the schedule") for text in ("", "0.1", "cosine(", "a.b()", "1:2:3", "\0")),
        *((f"cosine({text})", "cannot read the schedule") for text in ("steps=1, steps=2", "**a", "steps=1,2")),
        ("(" * 10_000, "cannot read the schedule"),
    ],
)
def test_parse_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        schedules.parse(text, initial=0.5, steps=1000)
    assert str(caught.value).startswith(message)


def nested(depth: int) -> Any:
    data: Any = 1.0
    for _ in range(depth):
        data = {"schedule": "warmup", "arguments": {"steps": 1, "then": data}}
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "a schedule is written"),
        ({}, "a schedule is written"),
        ({"schedule": 3, "arguments": {}}, "a schedule is written"),
        ({"schedule": "cosine", "arguments": [1.0, 10]}, "a schedule is written"),
        ({"schedule": "cosine", "arguments": {}, "more": 1}, "a schedule is written"),
        ({"schedule": "cosin", "arguments": {}}, "unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ({"schedule": "cosine", "arguments": {"step": 1}}, "cosine: unknown argument 'step' (did you mean 'steps'?)"),
        ({"schedule": "cosine", "arguments": {"initial": 1.0}}, "cosine: missing a required argument: 'steps'"),
        ({"schedule": "constant", "arguments": {"value": "x"}}, "constant: value must be a finite number, got 'x'"),
        (nested(10_000), "warmup: too many schedules, one within the other"),
    ],
)
def test_from_dict_refuses(data: Any, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        schedules.from_dict(data)
    assert str(caught.value).startswith(message)


# Arguments


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda s: s.constant(math.nan), ValueError, "constant: value must be a finite number, got nan"),
        (lambda s: s.constant(10**400), ValueError, "constant: value must be a finite number, got 1000"),
        (lambda s: s.constant("0.1"), TypeError, "constant: value must be a finite number, got '0.1'"),
        (lambda s: s.constant(True), TypeError, "constant: value must be a finite number, got True"),
        (lambda s: s.constant(1j), TypeError, "constant: value must be a finite number, got 1j"),
        (lambda s: s.constant(np.ones(1)), TypeError, "constant: value must be a finite number, got array([1.])"),
        (lambda s: s.constant(), TypeError, "constant: missing a required argument: 'value'; usage: constant(value)"),
        (
            lambda s: s.constant(initial=1),
            TypeError,
            "constant: unknown argument 'initial' (did you mean 'value'?); usage: constant(value)",
        ),
        (lambda s: s.inverse_time(1.0, -0.1), ValueError, "inverse_time: decay must be a finite number >= 0, got -0.1"),
        (lambda s: s.exponential(1.0, 0), ValueError, "exponential: decay must be a finite number > 0, got 0"),
        (lambda s: s.exponential(1.0, 0.5, 0), ValueError, "exponential: every must be a positive integer, got 0"),
        (lambda s: s.step(1.0, -1, 10), ValueError, "step: factor must be a finite number > 0, got -1"),
        (lambda s: s.step(1.0, 0.5, 2.5), ValueError, "step: every must be a positive integer, got 2.5"),
        (lambda s: s.step(1.0, 0.5, math.inf), ValueError, "step: every must be a positive integer, got inf"),
        (lambda s: s.piecewise(1, [3, 3], [1, 1]), ValueError, "piecewise: boundaries must be increasing positive"),
        (lambda s: s.piecewise(1, [0, 3], [1, 1]), ValueError, "piecewise: boundaries must be increasing positive"),
        (lambda s: s.piecewise(1, "34", [1, 1]), TypeError, "piecewise: boundaries must be increasing positive"),
        (lambda s: s.piecewise(1, [3], [1, 1]), ValueError, "piecewise: values must be finite numbers, one a boundary"),
        (
            lambda s: s.piecewise(1, [3], [math.nan]),
            ValueError,
            "piecewise: values must be finite numbers, one a bound",
        ),
        (lambda s: s.polynomial(1.0, 0), ValueError, "polynomial: steps must be a positive integer, got 0"),
        (lambda s: s.polynomial(1.0, 9, power=0), ValueError, "polynomial: power must be a finite number > 0, got 0"),
        (lambda s: s.linear_warmup(1.0, -3), ValueError, "linear_warmup: warmup must be a positive integer, got -3"),
        (
            lambda s: s.linear_warmup(math.cos, 3),
            TypeError,
            "linear_warmup: peak must be a finite number or a schedule",
        ),
        (
            lambda s: s.cosine(1.0, 10, cycles=11),
            ValueError,
            "cosine: cycles must be a positive integer, at most steps",
        ),
        (lambda s: s.cosine(1.0, 10, cycles=4, growth=3), ValueError, "cosine: growth must be a positive integer that"),
        (lambda s: s.cosine(1.0, 10**6, cycles=10**6, growth=2), ValueError, "cosine: growth must be"),
        (lambda s: s.one_cycle(1.0, 10, pct_start=1.0), ValueError, "one_cycle: pct_start must be a number between 0"),
        (lambda s: s.one_cycle(1.0, 10, div_factor=0), ValueError, "one_cycle: div_factor must be a finite number > 0"),
        (lambda s: s.join([], []), ValueError, "join: schedules must be one or more schedules, got []"),
        (lambda s: s.join([0.1], []), TypeError, "join: schedules must be one or more schedules, got [0.1]"),
        (
            lambda s: s.join([s.constant(1.0)], [5]),
            ValueError,
            "join: boundaries must be increasing positive integers, o",
        ),
        (lambda s: s.constant(1.0)(-1), ValueError, "constant: steps count from 0, got step -1"),
    ],
)
def test_bad_arguments(make: Callable[[Any], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        make(schedules)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("made", "turns"),
    [
        (schedules.constant(1.0), set()),
        (schedules.cosine(1.0, steps=70), {1, 70}),  # of one cycle, which lasts as long as the one before it
        (schedules.piecewise(1.0, [5, 9], [2.0, 3.0]), {5, 9}),
        (schedules.linear_warmup(schedules.scaled(schedules.step(1.0, 0.5, every=10), 2.0), warmup=4), {4, 14}),
        (schedules.join([schedules.constant(1.0)] * 3 + [schedules.step(1.0, 2.0, 3)], [10, 20, 30]), {10, 20, 30, 33}),
    ],
    ids=["constant", "cosine", "piecewise", "linear_warmup", "join"],
)
def test_turns(made: schedules.Schedule, turns: set[int]) -> None:
    assert made.turns == turns


def test_turns_of_many_and_deep_schedules() -> None:
    deep: schedules.Schedule = schedules.constant(1.0)
    for _ in range(5000):
        deep = schedules.linear_warmup(deep, warmup=2)
    assert deep.turns == set(range(2, 10_001, 2))


@pytest.mark.parametrize(
    ("made", "step", "words"),
    [
        (schedules.exponential(1.0, decay=2.0), 1024, "exponential: beyond the floats at step 1024"),
        (schedules.step(1.0, factor=2.0, every=1), 5000, "step: beyond the floats at step 5000"),
        (schedules.inverse_time(1.0, decay=0.1), 10**400, "inverse_time: beyond the floats at step 10000"),
        (schedules.linear_warmup(schedules.step(1.0, 2.0, every=1), warmup=3), 2000, "step: beyond .* step 1997"),
        (schedules.join([schedules.constant(1.0), schedules.exponential(1.0, 9.0)], [5]), 900, "exponential: beyond"),
    ],
    ids=["exponential", "step", "inverse_time", "linear_warmup", "join"],
)
def test_what_leaves_the_floats_is_named(made: schedules.Schedule, step: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        made(step)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_signatures_are_for_readers(name: str) -> None:
    assert not re.search("0x|<|Domain", str(inspect.signature(schedules.SCHEDULES[name])))


@pytest.mark.parametrize("value", [np.array(0.25), np.array(0.25, "f4"), np.float32(0.25), np.array(1)])
def test_a_schedule_may_return_an_array_without_axes(value: Any) -> None:
    found = gpuopt.SGD(lr=lambda step: value).at(3)["lr"]
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("value", [np.ones(1), np.array("1"), np.array(1j), np.array(True), np.array(-1.0)])
def test_of_arrays_only_those_without_axes_that_hold_a_number(value: Any) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"^SGD: lr at step 3, by its schedule: got .*, expected a number"
    ):
        gpuopt.SGD(lr=lambda step: value).at(3)
