"""How pictures look. This file alone names the library that draws, matplotlib.

Lines differ in colour, dashes and markers, so that they can be told apart in black and white and by everybody; the colours
are those of Okabe & Ito (https://jfly.uni-koeln.de/color/). Figures are made without pyplot: there is no global state.
"""

from __future__ import annotations

import io
import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np

from gpuopt.markup import COLOURS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Axes: TypeAlias = Any
    Values: TypeAlias = Any
    Figure: TypeAlias = Any

__all__ = [
    "STYLES",
    "Style",
    "draw_line",
    "figure",
    "gif",
    "legend",
    "mark",
    "plain",
    "png",
    "pngs",
    "rgb",
    "scale",
    "style",
]

DPI = 120
DECADES = 1.0
"""A quantity that spans more than this has a logarithmic axis."""
MARKERS_ON_A_LINE = 12


@dataclass(frozen=True)
class Style:
    """Of a line."""

    color: str
    dash: Any
    marker: str


STYLES = (
    Style(COLOURS[0], "-", "o"),
    Style(COLOURS[1], (0, (6, 2)), "s"),
    Style(COLOURS[2], (0, (1, 1.2)), "^"),
    Style(COLOURS[3], (0, (6, 2, 1, 2)), "D"),
    Style(COLOURS[4], (0, (3, 1.5)), "v"),
    Style(COLOURS[5], (0, (6, 1, 1, 1, 1, 1)), "P"),
    Style(COLOURS[6], (0, (10, 3)), "X"),
)
EVENT = Style(COLOURS[-1], (0, (2, 2)), "v")


def style(number: int) -> Style:
    """The style of a line by its number; after the last one they begin anew with other markers."""
    of, again = STYLES[number % len(STYLES)], number // len(STYLES)
    return Style(of.color, of.dash, STYLES[(number + again) % len(STYLES)].marker)


def rgb(color: str) -> list[int]:
    """Red, green and blue of ``#RRGGBB``."""
    return [*bytes.fromhex(color[1:])]


Kind: TypeAlias = tuple[float, float, int, int]
"""Width and height of a figure, rows and columns of axes."""
_kinds: WeakKeyDictionary[Figure, Kind] = WeakKeyDictionary()
_spare: dict[Kind, list[Figure]] = {}
"""Cleared figures: axes and their ticks take longer than all the rest."""
_stills: WeakKeyDictionary[Figure, dict[Any, Any]] = WeakKeyDictionary()
"""Of figures that were drawn: by what their axes were like, the picture without what is inside these."""
STILLS = 8


def figure(
    width: float = 6.4, height: float = 3.6, rows: int = 1, columns: int = 1, labels: Sequence[str] = ()
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row by row: so many inches wide and high, and below that a `legend` of these labels."""
    try:
        from matplotlib.ticker import MaxNLocator
    except ModuleNotFoundError as error:
        cure = 'run `pip install "gpuopt[train]"`'
        raise ModuleNotFoundError(
            f"pictures need {error.name}, which is not installed; {cure}", name=error.name
        ) from None

    room = 0.1 + 0.2 * math.ceil(len(labels) / _columns(labels, width)) if labels else 0
    kind = (width, height + room, rows, columns)
    try:
        made = _spare[kind].pop()
    except (KeyError, IndexError):
        made = _made(kind, room)
    for axes in made.axes:
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
    return made, list(made.axes)


def _made(kind: Kind, room: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height, rows, columns = kind
    made = Figure(figsize=(width, height), dpi=DPI)
    _kinds[made] = kind
    FigureCanvasAgg(made)
    # By hand: a layout that matplotlib finds costs two drawings.
    made.subplots_adjust(
        left=1.05 / width, right=1 - 0.15 / width, bottom=(0.52 + room) / height, top=1 - 0.4 / height,
        wspace=0.28, hspace=0.42,
    )  # fmt: skip
    for axes in made.subplots(rows, columns, squeeze=False).flat:
        axes.grid(visible=True, color="#d8d8d8", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return made


def _clear(drawn: Figure) -> None:
    """Keep a figure for the next one of its kind, unless it has got more axes than these have, for a colour bar."""
    _, _, rows, columns = kind = _kinds[drawn]
    if len(drawn.axes) == rows * columns:
        for artist in _contents(drawn):
            artist.remove()
        for axes in drawn.axes:
            axes.set_yscale("linear")
            axes.relim()
            axes.autoscale()
        _spare.setdefault(kind, []).append(drawn)


def legend(drawn: Figure) -> None:
    """Say what everything with a label is, below all axes, where it hides nothing."""
    found = {
        label: handle for axes in drawn.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    columns = _columns(list(found), drawn.get_figwidth())
    drawn.legend(
        found.values(), found.keys(), ncols=columns, fontsize=9, handlelength=4, loc="lower center", frameon=False
    )


def _columns(labels: Sequence[str], width: float) -> int:
    """How many columns a legend of these labels may have in so many inches."""
    widths = [0.8 + 0.075 * len(label) for label in labels]
    return max(1, len(labels) if sum(widths) < width else int(width / max(widths)))


def draw_line(axes: Axes, x: Values, y: Values, number: int, label: str) -> None:
    """A line in the style of this number, with a few markers."""
    of = style(number)
    every = max(1, len(x) // MARKERS_ON_A_LINE)
    first = int(number * 0.618 % 1 * every)  # lines that coincide show the markers of all
    axes.plot(
        x, y, color=of.color, linestyle=of.dash, marker=of.marker, markevery=(first, every),
        markersize=4.5, markerfacecolor="white", linewidth=1.5, label=label,
    )  # fmt: skip


def scale(axes: Axes, values: Iterable[float], *, from_zero: bool = False) -> None:
    """A logarithmic axis for values that span decades; else a linear one, which may begin at 0."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    # What an axis cannot reach is at its end, and what a schedule left of a learning rate in the end is 0.
    known = [math.copysign(min(abs(y), 1e300), y) if abs(y) > 1e-300 else 0.0 for y in values if math.isfinite(y)]
    positive = [value for value in known if value > 0]
    decades = math.log10(max(positive) / min(positive)) if positive else 0
    if decades > DECADES and len(positive) == len(known):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1,)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        margin = 10 ** min(0.04 * decades, 5)
        axes.set_ylim(_round(min(positive) / margin, down=True), _round(max(positive) * margin))
    elif known:
        low, high = min([0.0, *known] if from_zero else known), max(known)
        if high - low <= 1e-9 * max(map(abs, known)):  # constant: no axis of its rounding errors
            low, high = sorted((0.5 * low, 1.5 * low)) if low else (-1, 1)
        unit = _round(high - low) / 10
        bottom = -0.3 if from_zero and low == 0 else math.floor(low / unit - 0.3)
        axes.set_ylim(unit * bottom, unit * math.ceil(high / unit + 0.3))


def _round(value: float, *, down: bool = False) -> float:
    """The next of 1, 2, 5, 10, 20, ... above or below. Round limits seldom change while a run goes on."""
    power = 10.0 ** math.floor(math.log10(value))
    steps = [power * step for step in (1, 2, 5, 10)]
    if down:
        return max((step for step in steps if step <= value), default=power)
    return min((step for step in steps if step >= value), default=10 * power)


def mark(axes: Axes, x: float, label: str = "", of: Style = EVENT, height: float = 1) -> None:
    """An event: a vertical line with a marker, in this share of its height, and a label on top."""
    axes.axvline(x, color=of.color, linewidth=0.9, linestyle=of.dash, zorder=1.5)
    top = axes.get_xaxis_transform()
    axes.plot(
        [x], [height], marker=of.marker, color=of.color, markersize=5, transform=top, clip_on=False, linestyle="none"
    )
    axes.text(x, 1.025, label, transform=top, ha="center", va="bottom", fontsize=7)


def plain(text: str) -> str:
    """A name as it is: a dollar sign in it begins no mathematics."""
    return text.replace("$", r"\$")


def png(drawn: Figure, *, small: bool = False) -> bytes:
    """The figure as a PNG file; as a small one with fewer colours."""
    _render(drawn)
    return _file(_reduced(_pixels(drawn)), optimize=True) if small else _file(_pixels(drawn))


def pngs(figures: Iterable[tuple[str, Figure]]) -> dict[str, bytes]:
    """Figures as PNG files, by name. Each is cleared when it is drawn, for the next one to be made of.

    While one is drawn, a thread compresses the one before.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as thread:
        files = {}
        for name, drawn in figures:
            _render(drawn)
            files[name] = thread.submit(_file, _pixels(drawn))
            _clear(drawn)
        return {name: file.result() for name, file in files.items()}


def _file(pixels: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    pixels.save(file, format="png", **options or {"compress_level": 1})
    return file.getvalue()


def _render(drawn: Figure) -> None:
    """Draw a figure; of one that was drawn before only what is inside its axes, if these are as they were once."""
    names = ("xlim", "ylim", "yscale", "xlabel", "ylabel", "title", "xticks", "yticks")
    frame = tuple(str([getattr(axes, f"get_{name}")() for name in names]) for axes in drawn.axes)
    contents = _contents(drawn)
    stills = _stills.setdefault(drawn, {})
    if frame not in stills:
        for artist in contents:
            artist.set_animated(True)  # leave it out
        drawn.canvas.draw()
        if len(stills) == STILLS:
            del stills[next(iter(stills))]
        stills[frame] = drawn.canvas.copy_from_bbox(drawn.bbox)
    drawn.canvas.restore_region(stills[frame])
    for artist in sorted(contents, key=lambda artist: artist.get_zorder()):
        artist.draw(drawn.canvas.get_renderer())


def _contents(drawn: Figure) -> list[Any]:
    """What is inside the axes, in the order in which it is drawn if nothing else decides, and the legend."""
    inside = [[*axes.images, *axes.collections, *axes.lines, *axes.texts] for axes in drawn.axes]
    return [*itertools.chain(*inside), *drawn.legends]


def gif(drawn: Figure, moving: Sequence[Any], show: Callable[[int], None], frames: Sequence[int]) -> bytes:
    """An animation: a GIF file of what `show` makes of the `moving` lines for each frame, again and again.

    What does not move is drawn once.
    """
    for artist in _contents(drawn):
        artist.set_animated(artist in moving)
    drawn.canvas.draw()
    still = drawn.canvas.copy_from_bbox(drawn.bbox)
    made: list[Any] = []
    for frame in frames:
        show(frame)
        drawn.canvas.restore_region(still)
        for line in moving:
            line.axes.draw_artist(line)
        made.append(_reduced(_pixels(drawn).resize([size * 5 // 8 for size in drawn.canvas.get_width_height()])))
    file = io.BytesIO()
    durations = [100] * (len(made) - 1) + [2000]
    made[0].save(file, format="gif", save_all=True, append_images=made[1:], duration=durations, loop=0)
    return file.getvalue()


def _reduced(pixels: Any) -> Any:
    """The same picture in greys and the lines' colours, blended with white and with grey."""
    from PIL import Image

    palette = [level for level in range(255, -1, -12) for _ in "RGB"]
    for of in STYLES:
        for ground in (255, 200):
            palette += [round(ground + k / 5 * (c - ground)) for k in range(1, 6) for c in rgb(of.color)]
    known = Image.new("P", (1, 1))
    known.putpalette(palette)
    return pixels.quantize(palette=known, dither=Image.Dither.NONE)


def _pixels(drawn: Figure) -> Any:
    from PIL import Image

    return Image.fromarray(np.asarray(drawn.canvas.buffer_rgba())).convert("RGB")
