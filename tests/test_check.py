"""``gpuopt check``: all bits agree here, and a planted error is found and named."""

import contextlib
import dataclasses
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from running import gpuopt as command
from spaces import Space

from gpuopt import backends, check, nvrtc
from gpuopt.backends import discovery
from gpuopt.engines.cpu import ir
from gpuopt.engines.cpu import kernel as cpu
from gpuopt.engines.program.trace import traced
from gpuopt.rules import RULES

CASES = len(set(check.variants())) + (len(check.GUARDS) - 1) * len(set(check.variants(flags=False)))


@pytest.mark.slow
def test_all_bits_agree_on_the_cpu() -> None:
    cpu_finding = next(iter(check.check(seconds=200)))
    assert cpu_finding.engine == "numpy"
    assert cpu_finding.agrees
    assert cpu_finding.cases == CASES
    assert cpu_finding.bandwidth > 0
    assert cpu_finding.host_seconds > 0


def test_every_rule_is_among_the_variants() -> None:
    ours = {rule for rule in RULES.values() if (program := traced(rule())) and not program.extents}
    assert {type(rule) for rule in check.variants()} == ours
    assert any(getattr(rule, "nesterov", False) and getattr(rule, "momentum", 0) for rule in check.variants())


@pytest.fixture
def few_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a compiler of kernels that takes long."""
    rules = [rule for rule in check.variants() if type(rule) in {RULES["SGD"], RULES["Adam"]}]
    monkeypatch.setattr(check, "variants", lambda *, flags=True: iter(rules if flags else rules[:1]))


@pytest.mark.usefixtures("few_rules")
def test_every_device_agrees(cupy_space: Space) -> None:
    findings = list(check.check(seconds=300))
    assert len(findings) > 1
    for finding in findings[1:]:
        assert finding.agrees, finding
        assert finding.launches == 10
        assert finding.other_operations == 0
        assert not finding.unknown


@pytest.fixture
def contraction(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let LLVM make one operation of a product and a sum, as compilers do unless they are told not to."""
    for op in ("add", "sub", "mul"):
        code = ir.OPERATIONS[op]
        monkeypatch.setitem(ir.OPERATIONS, op, code.replace(f"f{op} ", f"f{op} contract "))
    cpu._functions.cache_clear()
    yield
    cpu._functions.cache_clear()


def shows_contraction(finding: check.Finding) -> None:
    """The finding names rule, leaf and an element by which it can be seen."""
    assert not finding.agrees
    assert not finding.error
    assert any(difference.rule.startswith("Adam(") for difference in finding.differences)
    difference = finding.differences[0]
    assert difference.elements >= 1
    values = {name: float.fromhex(value) for name, value in difference.smallest.items()}
    assert values["expected"] != values["found"]
    assert {"p", "g"} <= values.keys()
    shown = str(difference)
    for part in (difference.rule, difference.dtype, difference.layout, difference.smallest["expected"]):
        assert part in shown


@pytest.mark.slow
@pytest.mark.usefixtures("contraction")
def test_a_planted_error_is_found() -> None:
    shows_contraction(next(iter(check.check(seconds=200))))


@pytest.mark.usefixtures("few_rules")
def test_an_error_planted_on_a_gpu_is_found(cupy_space: Space, monkeypatch: pytest.MonkeyPatch) -> None:
    from gpuopt.engines.cuda import cache

    monkeypatch.setattr(nvrtc, "OPTIONS", ("-fmad=true", "-ftz=false"))
    cache.function.cache_clear()
    try:
        cpu_finding, *findings = check.check(seconds=300)
    finally:
        cache.function.cache_clear()
    assert cpu_finding.agrees
    assert findings
    for finding in findings:
        shows_contraction(finding)


@pytest.mark.slow
@pytest.mark.usefixtures("contraction")
def test_the_command_fails_where_bits_differ() -> None:
    code, output = command("check", "--seconds", "5")
    assert code == 1
    assert "differs  " in output


@pytest.mark.slow
@pytest.mark.usefixtures("few_rules")
def test_the_command() -> None:
    code, output = command("check", "--seconds", "200")
    assert code == 0, output
    assert "agree in all of" in output
    code, output = command("check", "--seconds", "200", "--json")
    found: list[dict[str, Any]] = json.loads(output)
    assert code == 0
    assert found[0]["left_out"] == 0
    assert found[0]["engine"] == "numpy"
    assert found[0]["differences"] == []


@pytest.mark.slow
def test_every_rule_is_compared_however_little_time_there_is() -> None:
    hurried = next(iter(check.check(seconds=0)))
    assert hurried.cases == len(set(check.variants(flags=False)))
    assert hurried.left_out == CASES - hurried.cases
    assert hurried.elements == check.LARGE // 16
    assert hurried.agrees
    assert ["no time", f"for {hurried.left_out} more cases: give it more --seconds"] in hurried.rows()


@pytest.mark.usefixtures("few_rules")
def test_time_does_not_decide_the_exit_status() -> None:
    code, output = command("check", "--seconds", "0")
    assert code == 0
    assert "no time" in output


def test_what_cannot_be_found_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(check, "variants", lambda *, flags=True: iter([RULES["SGD"]()]))
    monkeypatch.setattr(check, "_median", fail)
    finding = next(iter(check.check()))
    assert finding.unknown == ("small step: MemoryError: no more", "large step: MemoryError: no more")
    assert finding.agrees  # the bits do
    assert ["unknown", finding.unknown[0]] in finding.rows()
    assert dataclasses.asdict(finding)["unknown"] == finding.unknown
    monkeypatch.undo()

    def wait(self: object, call: object) -> None:
        raise RuntimeError("a captured stream is waited for")

    monkeypatch.setattr(type(backends.backend("cpu")), "operations", wait)
    there = backends.Backend("cupy", 0, "made up")
    monkeypatch.setattr(type(there), "use", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(type(there), "asarray", lambda self, x: x)
    monkeypatch.setattr(check, "_host_seconds", lambda target: {})
    monkeypatch.setattr(check, "_bandwidths", lambda target, size: {})
    assert check._measured(there, 0)[1] == ("ten steps: RuntimeError: a captured stream is waited for",)


def test_a_large_step_is_as_large_as_the_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def measure(target: backends.Backend, size: int) -> dict[str, float]:
        asked.append(size)
        if size > 1 << 20:
            raise MemoryError
        return {"bandwidth": 1e9, "copy_bandwidth": 2e9}

    monkeypatch.setattr(check, "_bandwidths_of", measure)
    found = check._bandwidths(backends.backend("cpu"))
    assert asked == [1 << 24, 1 << 22, 1 << 20]
    assert found["elements"] == 1 << 20
    finding = check.Finding("numpy", "", **found)  # type: ignore[arg-type]
    assert ["large step", "1,048,576 elements: 1.0 GB/s, 0.50 of a copy's 2.0 GB/s"] in finding.rows()


def test_a_table_for_terminals() -> None:
    finding = check.Finding("cupy:0", "a device", 7, error="it broke", unknown=("small step: why",))
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(finding.table())
    shown = console.export_text()
    for words in ("cupy:0: a device", "it broke", "agree in all of 7 cases", "small step: why"):
        assert words in shown


def test_a_device_that_fails_is_an_error_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no more")

    monkeypatch.setattr(check, "_compared", fail)
    (finding, *_) = check.check(seconds=1)
    assert finding.error == "RuntimeError: no more"
    assert not finding.agrees


def test_a_device_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    there = backends.Device(0, "a device", "9.0", None, None)
    monkeypatch.setattr(check, "report", lambda: dataclasses.replace(backends.report(), devices=(there,)))
    monkeypatch.setattr(check, "_check", lambda target, end: check.Finding(str(target), ""))
    monkeypatch.setattr(discovery, "count_devices", lambda: "there is no driver")
    on_cpu, finding = check.check()
    assert on_cpu.agrees
    assert (finding.engine, finding.device) == ("cupy:0", "a device")
    assert finding.error.startswith("BackendUnavailable: ")
    assert not finding.agrees


def test_bits_that_differ() -> None:
    a, b = np.array([0.0, np.nan, 1.0]), np.array([-0.0, -np.nan, 1.0])
    assert check._differing(a, b).tolist() == [True, False, False]
