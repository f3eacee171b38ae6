"""Recurrences of rules and transforms in float64, written as in the papers; `test_formulas.py` walks them.

A recurrence is given a parameter, its gradient, a dict that it may keep things in, and the number of the step from 1 on, and
returns the new parameter. All sums over leaves are over the one leaf that there is.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

import gpuopt

Recurrence: TypeAlias = Callable[[Any, Any, dict[str, Any], int], Any]


def mean(s: dict[str, Any], name: str, beta: float, x: Any) -> Any:
    """An exponential mean that starts at 0."""
    s[name] = s.get(name, 0.0) + (1 - beta) * (x - s.get(name, 0.0))
    return s[name]


def adam_move(g: Any, s: dict[str, Any], t: int, eps: float = 1e-7) -> Any:
    m, v = mean(s, "m", 0.9, g), mean(s, "v", 0.999, g**2)
    return m / (1 - 0.9**t) / ((v / (1 - 0.999**t)) ** 0.5 + eps)


def adamw(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    return p - 1e-2 * (adam_move(g, s, t) + 0.1 * p)


def amsgrad(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    m, v = mean(s, "m", 0.9, g), mean(s, "v", 0.999, g**2)
    s["most"] = np.maximum(s.get("most", 0.0), v)
    return p - 1e-2 * m / (1 - 0.9**t) / ((s["most"] / (1 - 0.999**t)) ** 0.5 + 1e-7)


def nadam(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    mu = [0.9 * (1 - 0.96 ** (0.004 * k) / 2) for k in range(1, t + 2)]
    m, v = mean(s, "m", 0.9, g), mean(s, "v", 0.999, g**2)
    m_hat = mu[t] * m / (1 - np.prod(mu)) + (1 - mu[t - 1]) * g / (1 - np.prod(mu[:-1]))
    return p - 1e-2 * m_hat / ((v / (1 - 0.999**t)) ** 0.5 + 1e-7)


def radam(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    m, v = mean(s, "m", 0.9, g), mean(s, "v", 0.999, g**2)
    m_hat, longest = m / (1 - 0.9**t), 2 / (1 - 0.999) - 1
    rho = longest - 2 * t * 0.999**t / (1 - 0.999**t)
    if rho <= 5:
        return p - 1e-2 * m_hat
    r = ((rho - 4) * (rho - 2) * longest / ((longest - 4) * (longest - 2) * rho)) ** 0.5
    return p - 1e-2 * r * m_hat / ((v / (1 - 0.999**t)) ** 0.5 + 1e-7)


def adamax(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    s["u"] = np.maximum(0.999 * s.get("u", 0.0), np.abs(g))
    return p - 1e-2 / (1 - 0.9**t) * mean(s, "m", 0.9, g) / (s["u"] + 1e-7)


def adadelta(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    move = ((s.get("u", 0.0) + 1e-6) / (mean(s, "v", 0.9, g**2) + 1e-6)) ** 0.5 * g
    mean(s, "u", 0.9, move**2)
    return p - move


def adabelief(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    m = mean(s, "m", 0.9, g)
    s["v"] = 0.999 * s.get("v", 0.0) + 0.001 * (g - m) ** 2 + 1e-12
    return p - 1e-2 * m / (1 - 0.9**t) / ((s["v"] / (1 - 0.999**t)) ** 0.5 + 1e-12)


def yogi(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    m = s["m"] = 0.9 * s.get("m", 1e-6) + 0.1 * g
    v = s.get("v", np.full_like(g, 1e-6))
    s["v"] = np.where(v > g**2, v - 0.001 * g**2, v + 0.001 * g**2)
    return p - 1e-2 * m / (1 - 0.9**t) / ((s["v"] / (1 - 0.999**t)) ** 0.5 + 1e-3)


def adan(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    d = g - s.get("before", g)
    s["before"] = g
    m, v, n = mean(s, "m", 0.98, g), mean(s, "v", 0.92, d), mean(s, "n", 0.99, (g + 0.08 * d) ** 2)
    move = m / (1 - 0.98**t) + 0.08 * v / (1 - 0.92**t)
    return p - 1e-2 * move / ((n / (1 - 0.99**t) + 1e-8) ** 0.5 + 1e-8)


def lion(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    direction = np.sign(0.9 * s.get("m", 0.0) + (1 - 0.9) * g)
    mean(s, "m", 0.99, g)
    return p - 1e-3 * direction


def rprop(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    before, step = s.get("g", np.zeros_like(g)), s.get("step", np.full_like(g, 0.01))
    step = np.where(g * before > 0, 1.2 * step, np.where(g * before < 0, 0.5 * step, step)).clip(1e-6, 50)
    g = np.where(g * before < 0, 0, g)
    s.update(g=g, step=step)
    return p - np.sign(g) * step


def asgd(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    eta = 0.01 / (1 + 1e-4 * 0.01 * (t - 1)) ** 0.75
    p = p - eta * (g + 1e-4 * p)
    mu = 1 / max(1, t - 1 - 10)
    s["average"] = p if mu == 1 else (1 - mu) * s["average"] + mu * p
    return p


def schedule_free(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    """The average of all z, evenly weighted, as the learning rate is constant."""
    s["z"] = s.get("z", p) - 0.01 * g
    s["x"] = s.get("x", p) + (s["z"] - s.get("x", p)) / t
    return 0.9 * s["x"] + 0.1 * s["z"]


def schedule_free_adamw(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    root = (mean(s, "v", 0.999, g**2) / (1 - 0.999**t)) ** 0.5
    return schedule_free(p, g / (root + 1e-8) + 0.1 * p, s, t)


def trust(p: Any, u: Any) -> Any:
    return np.linalg.norm(p) / np.linalg.norm(u)


def lamb(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    u = adam_move(g, s, t, 1e-6) + 0.1 * p
    return p - 1e-2 * trust(p, u) * u


def lars(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    u = g + 0.1 * p
    s["v"] = 0.9 * s.get("v", 0.0) + 0.1 * 0.001 * trust(p, u) * u
    return p - s["v"]


def novograd(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    square = np.sum(g**2)
    s["v"] = square if t == 1 else 0.25 * s["v"] + 0.75 * square
    s["m"] = 0.9 * s.get("m", 0.0) + g / (s["v"] ** 0.5 + 1e-6) + 0.1 * p
    return p - 1e-3 * s["m"]


def fromage(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    return (p - 1e-2 * trust(p, g) * g) / np.hypot(1, 1e-2)


def prodigy(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    d, start = s.setdefault("d", 1e-2), s.setdefault("start", p)
    step = d * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t)
    m, v = mean(s, "m", 0.9, d * g), mean(s, "v", 0.999, (d * g) ** 2)
    s["r"] = 0.999**0.5 * s.get("r", 0.0) + d / 1e-2 * step * np.sum(g * (start - p))
    s["s"] = 0.999**0.5 * s.get("s", 0.0) + step * d / 1e-2 * g
    s["d"] = max(d, s["r"] / np.sum(np.abs(s["s"])))
    return p - step * m / (v**0.5 + s["d"] * 1e-8)


def barzilai_borwein(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    step = 1e-3
    if t > 1:
        moved, change = p - s["p"], g - s["g"]
        if np.sum(moved * change) > 0:
            step = 0.1 * np.sum(moved**2) / np.sum(moved * change)
    s.update(p=p, g=g)
    return p - step * g


def conjugate(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    d = -g
    if t > 1:
        b = max(0.0, np.sum(g * (g - s["g"])) / np.sum(s["g"] ** 2))
        if np.sum(g * (b * s["d"] - g)) < 0:
            d = b * s["d"] - g
    s.update(g=g, d=d)
    return p + 1e-3 * d


def lbfgs(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    """By the dense inverse Hessian, updated pair by pair from the oldest on (Nocedal & Wright, equation 7.16)."""
    pairs = s.setdefault("pairs", [])
    if t > 1:
        pairs.append((p - s["p"], g - s["g"]))
        del pairs[:-3]
    s.update(p=p, g=g)
    if not pairs:
        return p - 0.01 * g * min(1, 1 / np.linalg.norm(g))
    moved, change = pairs[-1]
    h = np.eye(p.size) * (moved @ change) / (change @ change)
    for moved, change in pairs:
        left = np.eye(p.size) - np.outer(moved, change) / (moved @ change)
        h = left @ h @ left.T + np.outer(moved, moved) / (moved @ change)
    return p - 0.01 * h @ g


def clipped(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    return p - 0.1 * g * min(1, 0.5 / np.linalg.norm(g))


def adaptive(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    return p - 0.1 * g * min(1, 0.1 * np.linalg.norm(p) / np.linalg.norm(g))


def fista(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    x = p - 0.1 * g
    x = np.where(np.abs(x) > 0.1 * 0.5, x - np.sign(x) * 0.1 * 0.5, 0)
    theta = s.get("theta", 1.0)
    s["theta"] = (1 + (1 + 4 * theta**2) ** 0.5) / 2
    moved, s["x"] = x - s.get("x", p if t == 1 else 0), x
    return x + (theta - 1) / s["theta"] * moved


def lookahead(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    slow, fast = s.setdefault("slow", p), p - 0.1 * g
    if t % 3:
        return fast
    s["slow"] = slow + 0.5 * (fast - slow)
    return s["slow"]


def cautious(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    s["v"] = 0.9 * s.get("v", 0.0) - 0.1 * g
    downhill = s["v"] * g < 0
    return p + np.where(downhill, s["v"], 0) / max(np.mean(downhill), 1e-3)


def muon(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    """Newton-Schulz is a polynomial of the singular values."""
    m = mean(s, "m", 0.95, g)
    left, x, right = np.linalg.svd(0.95 * m + 0.05 * g, full_matrices=False)
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    scale = max(1, p.shape[0] / p.shape[1]) ** 0.5
    return p - 0.02 * 0.1 * p - 0.02 * scale * (left * x) @ right


def adafactor(p: Any, g: Any, s: dict[str, Any], t: int) -> Any:
    beta = 1 - t**-0.8
    r, c = mean(s, "r", beta, np.mean(g**2 + 1e-30, 1)), mean(s, "c", beta, np.mean(g**2 + 1e-30, 0))
    u = g / (np.outer(r, c) / np.mean(r)) ** 0.5
    step = min(0.05, t**-0.5) * max(1e-3, np.mean(p**2) ** 0.5)
    return p - step * u / max(1, np.mean(u**2) ** 0.5)


SGD = gpuopt.SGD(0.1)


RULES: dict[str, tuple[gpuopt.Rule, Recurrence]] = {
    "AdamW": (gpuopt.AdamW(1e-2, weight_decay=0.1), adamw),
    "Adam, amsgrad": (gpuopt.Adam(1e-2, amsgrad=True), amsgrad),
    "NAdam": (gpuopt.NAdam(1e-2), nadam),
    "RAdam": (gpuopt.RAdam(1e-2), radam),
    "AdaMax": (gpuopt.AdaMax(1e-2), adamax),
    "AdaDelta": (gpuopt.AdaDelta(), adadelta),
    "AdaBelief": (gpuopt.AdaBelief(1e-2, eps=1e-12, eps_belief=1e-12), adabelief),
    "Yogi": (gpuopt.Yogi(1e-2), yogi),
    "Adan": (gpuopt.Adan(1e-2), adan),
    "Lion": (gpuopt.Lion(1e-3), lion),
    "Rprop": (gpuopt.Rprop(), rprop),
    "ASGD": (gpuopt.ASGD(start=10), asgd),
    "ScheduleFreeSGD": (gpuopt.ScheduleFreeSGD(0.01), schedule_free),
    "ScheduleFreeAdamW": (gpuopt.ScheduleFreeAdamW(0.01, weight_decay=0.1), schedule_free_adamw),
    "LAMB": (gpuopt.LAMB(1e-2, weight_decay=0.1), lamb),
    "LARS": (gpuopt.LARS(weight_decay=0.1), lars),
    "Novograd": (gpuopt.Novograd(weight_decay=0.1), novograd),
    "Fromage": (gpuopt.Fromage(), fromage),
    "Prodigy": (gpuopt.Prodigy(d0=1e-2), prodigy),
    "BarzilaiBorwein": (gpuopt.BarzilaiBorwein(factor=0.1), barzilai_borwein),
    "NonlinearCG": (gpuopt.NonlinearCG(), conjugate),
    "LBFGS": (gpuopt.LBFGS(0.01, memory=3), lbfgs),
}
RULES_ALONE = [SGD, gpuopt.Adam(0.1), *(rule for rule, _ in RULES.values())]
MATRICES: dict[str, tuple[gpuopt.Rule, Recurrence]] = {
    "Muon": (gpuopt.Muon(weight_decay=0.1), muon),
    "Adafactor": (gpuopt.Adafactor(0.05), adafactor),
}
"""Rules that see the shape of a leaf, for matrices of more rows than columns."""
TRANSFORMS: dict[str, tuple[gpuopt.Rule, Recurrence]] = {
    "L2": (gpuopt.chain(gpuopt.L2(0.5), SGD), lambda p, g, s, t: p - 0.1 * (g + 0.5 * p)),
    "WeightDecay": (gpuopt.chain(gpuopt.WeightDecay(0.5), SGD), lambda p, g, s, t: p - 0.1 * g - 0.1 * 0.5 * p),
    "Maximize": (gpuopt.chain(gpuopt.Maximize(), SGD), lambda p, g, s, t: p + 0.1 * g),
    "ClipValue": (gpuopt.chain(gpuopt.ClipValue(0.1), SGD), lambda p, g, s, t: p - 0.1 * g.clip(-0.1, 0.1)),
    "ClipNorm": (gpuopt.chain(gpuopt.ClipNorm(0.5), SGD), clipped),
    "ClipGlobalNorm": (gpuopt.chain(gpuopt.ClipGlobalNorm(0.5), SGD), clipped),
    "AdaptiveClip": (gpuopt.chain(gpuopt.AdaptiveClip(0.1), SGD), adaptive),
    "Centralize": (gpuopt.chain(gpuopt.Centralize(), SGD), lambda p, g, s, t: p - 0.1 * (g - np.mean(g))),
    "Cautious": (gpuopt.chain(gpuopt.SGD(0.1, 0.9), gpuopt.Cautious()), cautious),
    "NonNegative": (gpuopt.chain(SGD, gpuopt.NonNegative()), lambda p, g, s, t: np.maximum(p - 0.1 * g, 0)),
    "Box": (gpuopt.chain(SGD, gpuopt.Box(0.5, 1.5)), lambda p, g, s, t: (p - 0.1 * g).clip(0.5, 1.5)),
    "Magnitude": (gpuopt.chain(SGD, gpuopt.Magnitude(0.5, 1.5)), lambda p, g, s, t: (p - 0.1 * g).clip(0.5, 1.5)),
    "FISTA": (gpuopt.chain(SGD, gpuopt.SoftThreshold(0.5), gpuopt.Accelerate()), fista),
    "Lookahead": (gpuopt.chain(SGD, gpuopt.Lookahead(every=3)), lookahead),
    "Scale": (
        gpuopt.chain(SGD, gpuopt.Scale(np.linspace(0, 2, 64))),
        lambda p, g, s, t: p - 0.1 * np.linspace(0, 2, 64) * g,
    ),
}
SHAPED: dict[str, tuple[gpuopt.Rule, Recurrence]] = {
    "Centralize of outputs": (
        gpuopt.chain(gpuopt.Centralize(outputs=0), SGD),
        lambda p, g, s, t: p - 0.1 * (g - np.mean(g, axis=1, keepdims=True)),
    ),
}
"""Chains that see the shape of a leaf."""
OF_MATRICES = [rule for rule, _ in (MATRICES | SHAPED).values()]
"""Those whose problem is a matrix."""
