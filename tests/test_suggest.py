"""Which known name was meant: by capitals, by other libraries' words, by spelling; and who asks."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conformance import DEFAULTS

import gpuopt
from gpuopt import public, schedules
from gpuopt.rules import RULES
from gpuopt.suggest import MOST, SAME, did_you_mean, listed
from gpuopt.training import Config, UsageError

ADAM, RMSPROP = list(DEFAULTS["Adam"]), list(DEFAULTS["RMSProp"])

# Given, known, the names that are suggested.
NAMES: list[tuple[str, list[str], list[str]]] = [
    ("learning_rate", ADAM, ["lr"]),
    ("learningRate", ADAM, ["lr"]),
    ("eta", ADAM, ["lr"]),
    ("LR", ADAM, ["lr"]),
    ("alpha", ADAM, ["lr"]),
    ("alpha", RMSPROP, ["lr", "rho"]),
    ("betas", ADAM, ["beta1", "beta2"]),
    ("b2", ADAM, ["beta2"]),
    ("beta_1", ADAM, ["beta1"]),
    ("epsilon", ADAM, ["eps"]),
    ("weight_decay", ADAM, []),
    ("wd", [*ADAM, "weight_decay"], ["weight_decay"]),
    ("momentun", list(DEFAULTS["SGD"]), ["momentum"]),
    ("mass", list(DEFAULTS["SGD"]), ["momentum"]),
    ("FISTA", public.__all__, ["Accelerate"]),
    ("Momentum", public.__all__, ["SGD"]),
    ("adam", list(RULES), ["Adam"]),
    ("sgd", list(RULES), ["SGD"]),
    ("RMSprop", list(RULES), ["RMSProp"]),
    ("Adagrad", list(RULES), ["AdaGrad"]),
    ("adagard", list(RULES), ["AdaGrad"]),
    ("CosineAnnealingLR", list(schedules.SCHEDULES), ["cosine"]),
    ("exponential_decay", list(schedules.SCHEDULES), ["exponential"]),
    ("StepLR", list(schedules.SCHEDULES), ["step"]),
    ("T_max", ["initial", "steps", "final"], ["steps"]),
    ("--learning-rate", ["--lr", "--epochs"], ["--lr"]),
    ("--batchsize", ["--batch-size", "--epochs"], ["--batch-size"]),
    ("decay", [*ADAM, "EMA.decay"], ["EMA.decay"]),
    ("xyz", ADAM, []),
    ("", ADAM, []),
    ("lr", [], []),
]


@pytest.mark.parametrize(("given", "known", "expected"), NAMES, ids=lambda x: x if isinstance(x, str) else "")
def test_names(given: str, known: list[str], expected: list[str]) -> None:
    said = f" (did you mean {' or '.join(map(repr, expected))}?)" if expected else ""
    assert did_you_mean(given, known) == said


def test_our_own_words_are_understood_as_themselves() -> None:
    for line in SAME:
        own, *others = line.split()
        assert all(did_you_mean(other, [own]) == f" (did you mean {own!r}?)" for other in others)


def test_of_many_names_only_the_first_are_looked_at() -> None:
    names = [f"layer{i:06}" for i in range(10 * MOST)]
    assert did_you_mean("LAYER_000019", names) == " (did you mean 'layer000019'?)"
    assert did_you_mean(f"LAYER_{9 * MOST:06}", names) != f" (did you mean 'layer{9 * MOST:06}'?)"


def test_listed() -> None:
    assert listed("abc") == "a, b, c"
    assert listed("abc", 2, repr) == "'a', 'b' and 1 more"
    assert listed(map(str, range(12_345)), 1) == "0 and 12,344 more"


# Who asks. Name: what is done, the error, its words.
ASKED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a rule": (
        lambda: RULES["Adam"](betas=(0.9, 0.999)),
        TypeError,
        r"^Adam: unknown hyperparameter 'betas' \(did you mean 'beta1' or 'beta2'\?\), expected lr, beta1, beta2, eps, ",
    ),
    "tune": (
        lambda: gpuopt.Optimizer(np.ones(1), gpuopt.Adam()).tune(epsilon=0.0),
        TypeError,
        r"^tune: unknown hyperparameter 'epsilon' \(did you mean 'eps'\?\), expected lr, beta1, beta2, eps, ",
    ),
    "the package": (
        lambda: getattr(gpuopt, "RMSprop"),  # noqa: B009 - a type checker refuses it, too
        AttributeError,
        r"^module 'gpuopt' has no attribute 'RMSprop' \(did you mean 'RMSProp'\?\)$",
    ),
    "the schedules": (
        lambda: getattr(schedules, "StepLR"),  # noqa: B009
        AttributeError,
        r"^module 'gpuopt.schedules' has no attribute 'StepLR' \(did you mean 'step'\?\)$",
    ),
    "a schedule in the package": (
        lambda: getattr(gpuopt, "CosineAnnealingLR"),  # noqa: B009
        AttributeError,
        r"^module 'gpuopt' has no attribute 'CosineAnnealingLR' \(did you mean 'schedules.cosine'\?\)$",
    ),
    "a rule's name as the rule": (
        lambda: gpuopt.Optimizer(np.ones(1), "adam"),  # type: ignore[arg-type]
        TypeError,
        r"^rule: 'adam', expected a rule such as .* \(did you mean Adam\(\)\?\)$",
    ),
    "a pattern": (
        lambda: gpuopt.Optimizer({"kernel": np.ones(1)}, {"kernal": gpuopt.Adam()}),
        ValueError,
        r"^rule: the pattern 'kernal' matches no leaf \(did you mean 'kernel'\?\); there are 'kernel'$",
    ),
    "a schedule's argument": (
        lambda: schedules.cosine(0.1, T_max=9),  # type: ignore[call-arg]
        TypeError,
        r"^cosine: unknown argument 'T_max' \(did you mean 'steps'\?\); usage: cosine\(initial, steps, ",
    ),
    "a schedule's name": (
        lambda: schedules.parse("cosine_decay", initial=0.1, steps=9),
        ValueError,
        r"^unknown schedule 'cosine_decay' \(did you mean 'cosine'\?\); known: ",
    ),
    "a config's optimizer": (
        lambda: Config(optimizer="adagard"),
        UsageError,
        r"^--optimizer adagard: unknown \(did you mean AdaGrad\?\); known: ",
    ),
    "a config's hyperparameter": (
        lambda: Config(hyperparameters={"betas": 0.9}),
        UsageError,
        r"^--set betas=0.9: unknown hyperparameter \(did you mean beta1 or beta2\?\); Adam has lr, beta1, beta2, eps, ",
    ),
}


@pytest.mark.parametrize("case", ASKED)
def test_who_asks(case: str) -> None:
    do, error, words = ASKED[case]
    with pytest.raises(error, match=words):
        do()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("train --learning-rate 0.1", "No such option: --learning-rate (did you mean --lr?)"),
        ("train --momentum 0.9", "No such option: --momentum (did you mean --set momentum=VALUE?)"),
        ("train --epoch 3", "No such option: --epoch (did you mean --epochs?)"),
        ("train --xyz", "No such option: --xyz"),
        ("compare --momentum 0.9", "No such option: --momentum"),
        ("pause runs/x", "No such command: pause (did you mean tune RUN --pause?)"),
        ("resume runs/x", "No such command: resume (did you mean train --resume RUN or tune RUN --resume?)"),
        ("landscape --outt x", "No such option: --outt (did you mean --out?)"),
    ],
)
def test_options_of_the_command_line(arguments: str, words: str) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "gpuopt.cli", *arguments.split()], capture_output=True, text=True, check=False
    )
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == f"Error: {words}"
