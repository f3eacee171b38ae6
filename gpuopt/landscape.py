"""Optimizers on functions of two variables, where their paths can be seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from gpuopt import files, markup, pictures
from gpuopt.optimizer import Optimizer
from gpuopt.rules.adagrad import AdaGrad
from gpuopt.rules.adam import Adam
from gpuopt.rules.rmsprop import RMSProp
from gpuopt.rules.sgd import SGD

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from gpuopt.rules.base import Rule

    Point: TypeAlias = tuple[float, float]
    Walk: TypeAlias = NDArray[np.float64]

__all__ = ["LANDSCAPES", "PRESETS", "Landscape", "Preset", "draw", "walk"]

FRAMES = 50
LEVELS = 14
SETTLED = 1e-3
"""So near to a minimum it is reached."""


@dataclass(frozen=True)
class Landscape:
    """A function of two variables with its gradient.

    Attributes
    ----------
    formula : str
    value, gradient : callable
        Of `x` and `y`, numbers or arrays of one shape; the gradient is a pair.
    minima : tuple of points
        The global ones first.
    start : point
    window : two points
        The lower left and the upper right corner of what is drawn.
    """

    formula: str
    value: Callable[[Any, Any], Any]
    gradient: Callable[[Any, Any], tuple[Any, Any]]
    minima: tuple[Point, ...]
    start: Point
    window: tuple[Point, Point]


LANDSCAPES = {
    "ravine": Landscape(
        "x²/2 + 10 y²",
        lambda x, y: x**2 / 2 + 10 * y**2,
        lambda x, y: (x, 20 * y),
        ((0.0, 0.0),),
        (-4.0, 1.2),
        ((-4.6, -1.6), (1.4, 1.6)),
    ),
    "rosenbrock": Landscape(
        "(1 - x)² + 100 (y - x²)²",
        lambda x, y: (1 - x) ** 2 + 100 * (y - x**2) ** 2,
        lambda x, y: (-2 * (1 - x) - 400 * x * (y - x**2), 200 * (y - x**2)),
        ((1.0, 1.0),),
        (-1.2, 1.0),
        ((-1.8, -0.6), (1.8, 2.4)),
    ),
    "beale": Landscape(
        "(1.5 - x + x y)² + (2.25 - x + x y²)² + (2.625 - x + x y³)²",
        lambda x, y: sum((c - x + x * y**k) ** 2 for k, c in enumerate((1.5, 2.25, 2.625), 1)),
        lambda x, y: (
            sum(2 * (c - x + x * y**k) * (y**k - 1) for k, c in enumerate((1.5, 2.25, 2.625), 1)),
            sum(2 * (c - x + x * y**k) * k * x * y ** (k - 1) for k, c in enumerate((1.5, 2.25, 2.625), 1)),
        ),
        ((3.0, 0.5),),
        (1.0, 1.5),
        ((-0.2, -1.8), (3.6, 1.9)),
    ),
    "himmelblau": Landscape(
        "(x² + y - 11)² + (x + y² - 7)²",
        lambda x, y: (x**2 + y - 11) ** 2 + (x + y**2 - 7) ** 2,
        lambda x, y: (4 * x * (x**2 + y - 11) + 2 * (x + y**2 - 7), 2 * (x**2 + y - 11) + 4 * y * (x + y**2 - 7)),
        ((3.0, 2.0), (-2.805118, 3.131313), (-3.779310, -3.283186), (3.584428, -1.848127)),
        (0.2, 3.2),
        ((-5.0, -5.0), (5.0, 5.0)),
    ),
    "wells": Landscape(
        "x²/20 + sin²(x)/2 + y²/2",
        lambda x, y: x**2 / 20 + np.sin(x) ** 2 / 2 + y**2 / 2,
        lambda x, y: (x / 10 + np.sin(2 * x) / 2, y),
        ((0.0, 0.0), (2.839604, 0.0), (-2.839604, 0.0)),
        (4.0, 1.5),
        ((-2.2, -2.2), (4.8, 2.2)),
    ),
}


@dataclass(frozen=True)
class Preset:
    """A landscape, by its name, and who walks on it.

    Attributes
    ----------
    landscape, says : str
        Where, and what there is to see.
    rules : mapping
        By what the picture calls them.
    steps : int
    start : point, optional
    window : two points, optional
        Default: the landscape's.
    """

    landscape: str
    says: str
    rules: Mapping[str, Rule]
    steps: int
    start: Point | None = None
    window: tuple[Point, Point] | None = None

    @property
    def place(self) -> Landscape:
        """The landscape."""
        return LANDSCAPES[self.landscape]

    @property
    def drawn(self) -> tuple[Point, Point]:
        """The corners of what is drawn."""
        return self.window or self.place.window

    def walks(self) -> dict[str, Walk]:
        """The path of each rule, see `walk`."""
        return {name: walk(self.place, rule, self.steps, self.start) for name, rule in self.rules.items()}


def _all(plain: float, rolling: float, adagrad: float, rmsprop: float, adam: float) -> dict[str, Rule]:
    """All optimizers, each with a learning rate that suits the landscape."""
    rules = SGD(lr=plain), SGD(lr=rolling, momentum=0.9), AdaGrad(lr=adagrad), RMSProp(lr=rmsprop), Adam(lr=adam)
    return dict(zip(("SGD", "SGD, momentum 0.9", "AdaGrad", "RMSProp", "Adam"), rules, strict=True))


PRESETS = {
    "too-small": Preset(
        "wells",
        "Steps that are too small stagnate: the slope is hardly left behind.",
        {"SGD, lr 0.002": SGD(lr=0.002)},
        60,
    ),
    "too-large": Preset(
        "wells",
        "Steps that are too large bounce: from one side of the valley to the other, and after the first few hardly lower.",
        {"SGD, lr 1.999": SGD(lr=1.999)},
        60,
    ),
    "momentum": Preset(
        "wells",
        "Momentum rolls out of the local minimum in which plain descent stays.",
        {"SGD, lr 0.2": SGD(lr=0.2), "SGD, lr 0.2, momentum 0.9": SGD(lr=0.2, momentum=0.9)},
        80,
    ),
    "explodes": Preset(
        "wells",
        "Steps that are much too large explode: each one ends higher than it began.",
        {"SGD, lr 2.3": SGD(lr=2.3)},
        10,
        window=((-13.0, -22.0), (17.0, 22.0)),
    ),
    "ravine": Preset(
        "ravine",
        "A bowl with a ravine: plain descent zigzags, momentum swings, the others look at each direction by itself.",
        _all(0.09, 0.02, 0.5, 0.1, 0.2),
        100,
    ),
    "rosenbrock": Preset(
        "rosenbrock",
        "Rosenbrock's valley is found at once, its lowest point after a long way along it.",
        _all(0.001, 0.0005, 0.3, 0.01, 0.05),
        500,
    ),
    "beale": Preset(
        "beale", "Beale's function: steep walls around a flat valley.", _all(0.01, 0.003, 0.5, 0.02, 0.1), 300
    ),
    "himmelblau": Preset(
        "himmelblau",
        "Himmelblau's function has four minima, all of them as low: who ends in which one?",
        _all(0.005, 0.01, 0.8, 0.05, 0.3),
        120,
    ),
    "wells": Preset(
        "wells",
        "One wave over a bowl: who comes over the hill into the lowest well?",
        _all(0.2, 0.2, 0.5, 0.05, 0.5),
        100,
    ),
}
"""What ``gpuopt landscape`` knows by name: the first four are lessons, the others all optimizers on each landscape."""


def walk(place: Landscape, rule: Rule, steps: int, start: Point | None = None) -> Walk:
    """The points that a rule goes through, taken by `gpuopt.Optimizer` in float64.

    Returns
    -------
    array of shape (steps + 1, 2)
        From the start on. What explodes becomes infinite or NaN.

    Examples
    --------
    >>> walk(LANDSCAPES["ravine"], SGD(lr=0.05), 2, (-4.0, 1.0)).tolist()
    [[-4.0, 1.0], [-3.8, 0.0], [-3.61, 0.0]]
    """
    at = np.array(place.start if start is None else start, np.float64)
    optimizer = Optimizer(at, rule)
    points = [at.copy()]
    with np.errstate(all="ignore"):
        for _ in range(steps):
            optimizer.step(np.array(place.gradient(*at), np.float64))
            points.append(at.copy())
    return np.array(points)


def draw(name: str, preset: Preset, out: Path) -> list[Path]:
    """Draw a preset: ``NAME.png``, the animation ``NAME.gif``, and ``NAME.html`` with both and the figures.

    Parameters
    ----------
    name : str
        Of the files.
    preset : Preset
    out : Path
        The folder, made if it is not there; files of these names are replaced.

    Returns
    -------
    list of Path
    """
    walks = preset.walks()
    figure, moving = _picture(preset, walks)
    frames = np.unique(np.linspace(0, preset.steps, min(FRAMES, preset.steps + 1)).astype(int)).tolist()

    def show(step: int) -> None:
        for line, x, y in moving:
            line.set_data(x[: step + 1], y[: step + 1])

    show(preset.steps)
    still = pictures.png(figure, small=True)
    animated = pictures.gif(figure, [line for line, _, _ in moving], show, frames)
    head = ["optimizer", "rule", "x at the end", "y at the end", "f at the end", "step at a minimum"]
    rows = [[who, str(preset.rules[who]), *_ended(preset, path)] for who, path in walks.items()]
    page = markup.page(
        f"Landscape: {name}",
        f"<p>{preset.says}</p>",
        f"<p>f(x, y) = {preset.place.formula}, {preset.steps} steps.</p>",
        markup.table(head, rows),
        "<h2>The paths</h2>",
        markup.image(still, "Left: the paths from above. Right: how high they are, step by step."),
        "<h2>The same in motion</h2>",
        markup.image(animated, f"{preset.steps} steps", "gif"),
    )
    out.mkdir(parents=True, exist_ok=True)
    made = {out / f"{name}.png": still, out / f"{name}.gif": animated, out / f"{name}.html": page.encode()}
    for path, content in made.items():
        files.write(path, content)
    return list(made)


def _ended(preset: Preset, path: Walk) -> list[object]:
    """Where, how high, and when at a minimum to stay."""
    distances = np.min([np.hypot(*(path - minimum).T) for minimum in preset.place.minima], axis=0)
    away = np.flatnonzero(~(distances < SETTLED))
    settled = int(away[-1]) + 1 if away.size else 0
    with np.errstate(all="ignore"):
        height = float(preset.place.value(*path[-1]))
    return [*map(float, path[-1]), height, settled if settled <= preset.steps else "-"]


def _picture(preset: Preset, walks: Mapping[str, Walk]) -> tuple[Any, list[tuple[Any, Any, Any]]]:
    """The figure, and its lines with all their points."""
    place = preset.place
    (left, bottom), (right, top) = preset.drawn
    figure, (plan, profile) = pictures.figure(12.4, 4.7, 1, 2, [*walks, "start", "minimum"])
    x, y = np.meshgrid(np.linspace(left, right, 160), np.linspace(bottom, top, 160))
    height = np.asarray(place.value(x, y))
    lowest = min(float(place.value(*minimum)) for minimum in place.minima)
    span = float(height.max()) - lowest
    levels = lowest + span * np.linspace(0, 1, LEVELS) ** 3  # denser where it is flat
    plan.contourf(x, y, height, levels=levels, cmap="Greys_r", alpha=0.12, extend="max")
    lines = plan.contour(x, y, height, levels=levels[1:-1], colors="#707070", linewidths=0.5)
    for label in plan.clabel(lines, levels[5:-1:3], colors="black", fontsize=7, fmt="%.3g"):
        label.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6})  # also where a path goes
    plan.grid(visible=False)
    moving = []
    for number, (who, path) in enumerate(walks.items()):
        with np.errstate(all="ignore"):
            heights = np.asarray(place.value(*path.T)) - lowest
        heights = np.where(heights < 1e6 * span, heights, np.nan)  # what is not on the picture anyway
        seen = np.where(np.abs(path) < 1e6, path, np.nan)
        pictures.draw_line(plan, seen[:, 0], seen[:, 1], number, who)
        pictures.draw_line(profile, range(len(path)), heights, number, who)
        moving += [(plan.lines[-1], *seen.T), (profile.lines[-1], np.arange(len(path)), heights)]
    start = place.start if preset.start is None else preset.start
    named = {"color": "black", "linestyle": "none", "zorder": 5}
    plan.plot(*start, marker="*", markersize=15, label="start", **named)
    for number, minimum in enumerate(place.minima):
        label = "minimum" if number == 0 else None
        plan.plot(*minimum, marker="x", markersize=9, markeredgewidth=2.2, label=label, **named)
    plan.set(xlim=(left, right), ylim=(bottom, top), xlabel="x (no unit)", ylabel="y (no unit)")
    plan.set_title(f"Contours of f(x, y) = {place.formula}", fontsize=9)
    shown = np.concatenate([heights for _, _, heights in moving[1::2]])
    pictures.scale(profile, np.clip(shown, 1e-8 * span, 1e4 * span).tolist(), from_zero=True)
    profile.set(xlabel="Step (updates of x and y)", ylabel="f(x, y) above its minimum (no unit)")
    profile.set_xlim(-0.02 * preset.steps, 1.02 * preset.steps)
    profile.xaxis.get_major_locator().set_params(integer=True)
    profile.set_title("How high, step by step", fontsize=9)
    pictures.legend(figure)
    return figure, moving


def changed(preset: Preset, rules: Mapping[str, Rule] | None, steps: int | None, start: Point | None) -> Preset:
    """The same preset with others on it, for other steps or from somewhere else."""
    return replace(preset, rules=rules or preset.rules, steps=steps or preset.steps, start=start or preset.start)
