"""What the page looks like: curves, controls, and what happened."""

from __future__ import annotations

import base64
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from nicegui import ui

from gpuopt.runs.control.live import curves
from gpuopt.runs.control.live.curves import EPOCH, GREY, INK, MOMENT, TEST
from gpuopt.runs.record.events import describe, explain

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpuopt.runs.control.live.watcher import Row, Watcher

__all__ = ["show"]

REFRESH = 1.0
"""Seconds between two drawings, for which the browser takes some of what the training may have; who asked for something
sees it at once."""
STYLE = """
body { background: #fff; color: #1a1a1a; font-family: system-ui, sans-serif; }
.nicegui-content { padding: 16px 24px; gap: 12px; }
body:has(.status.ended) #popup { display: none !important; }
.muted { color: #6b6b6b; font-size: 13px; }
.status { border: 1px solid #1a1a1a; border-radius: 3px; padding: 1px 10px; font-size: 14px; }
.status.paused { background: #f0e442; }
.status.ended { background: #1a1a1a; color: #fff; }
.name { font-family: ui-monospace, monospace; font-size: 14px; }
.controls .q-btn { border-radius: 3px; white-space: nowrap; }
.picture { max-width: 420px; image-rendering: pixelated; border: 1px solid #d8d8d8; }
.events { font-size: 13px; line-height: 1.5; white-space: pre-line; max-height: 200px; overflow-y: auto; }
"""


def show(watcher: Watcher) -> None:
    """Build the page for a browser that just came."""
    ui.add_css(STYLE)
    ui.colors(primary=MOMENT)
    with ui.row().style("width: 100%; gap: 16px; align-items: center"):
        ui.label(watcher.name).style("font-size: 22px; font-weight: 600")
        status = ui.label().classes("status").mark("status")
        summary = ui.label().classes("muted")
    with ui.row(wrap=False).style("width: 100%; gap: 24px; align-items: flex-start"):
        with ui.column().classes("controls").style("width: 320px; flex: none; gap: 14px"):
            panel = ui.column().style("width: 100%; gap: 14px")
            ui.separator()
            ui.label("Events").style("font-weight: 600")
            events = ui.label().classes("events")
        with ui.column().style("flex: 1; min-width: 0; gap: 4px"):
            images_row = ui.row().style("gap: 16px; flex-wrap: wrap")
            curves_column = ui.column().style("width: 100%; gap: 4px")
    charts: dict[str, Chart] = {}
    controls: list[Controls] = []
    images: dict[str, tuple[Any, int]] = {}
    seen = -1

    def refresh() -> None:
        nonlocal seen
        now = watcher.now
        if seen == watcher.version or (now is None and not watcher.ended):
            status.set_text("waiting for the first step" if now is None else status.text)
            return
        seen = watcher.version
        state = "ended" if watcher.ended else "paused" if now and now["paused"] else "training"
        status.set_text("killed" if watcher.killed else state)
        status.classes(replace=f"status {state}")
        if now is not None:
            summary.set_text(_summary(now))
            if not controls:
                with panel:
                    controls.append(Controls(watcher, now, refresh))
            controls[0].update(now, ended=watcher.ended)
        events.set_text("\n".join(explain(event) for event in reversed(watcher.events[-50:])) or "none yet")
        with curves_column:
            for name in watcher.metrics():
                if name not in charts:
                    charts[name] = Chart(watcher, name)
        for chart in charts.values():
            chart.draw()
        _show_images(watcher, images_row, images)

    refresh()
    ui.timer(REFRESH, refresh)


def _summary(now: Row) -> str:
    epoch = [f"epoch {now['epoch']:,} of {now['epochs']:,}"] if "epoch" in now else []
    where = f"step {now['step']:,} of {now['steps']:,}"
    return " · ".join([now["rule"], *epoch, where, *filter(None, describe(now).split("  "))])


class Controls:
    """A field and a slider for each hyperparameter, and the buttons."""

    def __init__(self, watcher: Watcher, now: Row, refresh: Callable[[], None]) -> None:
        self._follower, self._refresh = watcher, refresh
        self._fields = [Hyperparameter(name, now["ranges"][name], self.ask) for name in now["hyperparameters"]]
        ui.separator()
        with ui.row().style("gap: 8px"):
            self._pause = self._button("Pause", lambda: {"resume" if self._is_paused else "pause": None})
            self._step = self._button("One step", lambda: {"step": None})
            self._save = self._button("Save now", lambda: {"save": None})
        with ui.row(wrap=False).style("width: 100%; gap: 8px; align-items: center"):
            self._back = (
                ui.select({}, label="State").props("dense outlined options-dense").style("flex: 1; min-width: 0")
            )
            self._roll = self._button("Roll back", lambda: {"rollback": self._back.value})
        self._stop = self._button("Stop", lambda: {"stop": None})
        self._is_paused = False

    def _button(self, text: str, request: Callable[[], dict[str, Any]]) -> ui.button:
        async def click() -> None:
            await self.ask(request())

        return ui.button(text, on_click=click).props("outline no-caps dense padding='4px 12px'").mark(text)

    async def ask(self, request: dict[str, Any]) -> bool:
        """Send a request, and say why it was refused if it was."""
        refused = await self._follower.ask(request)
        self._refresh()
        if refused is not None:
            ui.notify(refused, type="negative", position="top", timeout=8000)
        return refused is None

    def update(self, now: Row, *, ended: bool) -> None:
        """Show how the training stands."""
        self._is_paused = now["paused"]
        self._pause.set_text("Resume" if self._is_paused else "Pause")
        for field in self._fields:
            field.update(now)
        back = {
            name: STATES.get(name, "checkpoint") + ("" if steps is None else f" ({steps:,})")
            for name, steps in now["back"].items()
        }
        if back != self._back.options:
            self._back.set_options(back, value=self._back.value if self._back.value in back else "last")
        for element in (self._pause, self._step, self._save, self._back, self._roll, self._stop, *self._fields):
            element.set_enabled(not ended)


STATES = {"last": "last good", "change": "before change", "best": "best"}


class Hyperparameter:
    """One of them: a number, and a slider on a scale that suits its range; a flag is a switch."""

    def __init__(self, name: str, limits: list[float] | None, ask: Callable[[dict[str, Any]], Any]) -> None:
        self._name, self._ask = name, ask
        self._shown: Any = None
        self._is_chosen = False  # by somebody, just now
        self._slider: ui.slider | None = None
        with ui.column().style("width: 100%; gap: 0"):
            if limits is None:
                self._field: Any = ui.switch(name, on_change=self._entered).classes("name")
                return
            with ui.row(wrap=False).style("width: 100%; align-items: center; justify-content: space-between"):
                ui.label(LABELS.get(name, name)).classes("name")
                self._field = ui.number(format="%.6g").props(f'dense outlined step=any aria-label="{name}"').mark(name)
                self._field.style("width: 130px").on("keydown.enter", self._entered).on("blur", self._entered)
                self._field.on("focus", lambda: setattr(self, "_is_chosen", True))
            self._scale = FRACTION if limits == [0, 1] else _decades(*DECADES.get(name, (-6, 1)))
            self._slider = (
                ui.slider(min=self._scale.low, max=self._scale.high, step=0.01)
                .props(f'aria-label="{name}"')
                .mark(f"{name} slider")
            )
            # While it moves, the field follows; the training gets the value when it is let go.
            self._slider.on("update:model-value", self._moved).on("change", self._let_go)
            self._caption = ui.label().classes("muted")

    def set_enabled(self, wanted: bool) -> None:
        """Enable or disable the field and the slider."""
        for element in filter(None, (self._field, self._slider)):
            element.set_enabled(wanted)

    def update(self, now: Row) -> None:
        """Show the value of the next step, unless somebody is just choosing another one."""
        value = now["hyperparameters"][self._name]
        if self._slider is not None:
            schedule = now["schedules"].get(self._name)
            self._caption.set_text(f"follows {schedule}, until it is changed by hand" if schedule else "")
            self._caption.set_visibility(schedule is not None)
        if value != self._shown and not self._is_chosen:
            self._show(value)

    def _show(self, value: Any) -> None:
        self._shown = value
        self._field.set_value(value)
        if self._slider is not None:
            self._slider.set_value(self._scale.position(value))

    def _moved(self, event: Any) -> None:
        self._is_chosen = True
        self._field.set_value(self._scale.value(float(event.args)))

    async def _let_go(self, event: Any) -> None:
        await self._change(self._scale.value(float(event.args)))
        self._is_chosen = False

    async def _entered(self) -> None:
        self._is_chosen = False
        value = self._field.value
        if value is None:
            self._field.set_value(self._shown)
        # The field shows six digits: who leaves it as it is changes nothing.
        if value is not None and (isinstance(value, bool) or f"{value:.6g}" != f"{self._shown:.6g}"):
            await self._change(value)

    async def _change(self, value: float) -> None:
        before = self._shown
        if value != before and await self._ask({"tune": {self._name: value}}):
            self._shown = value
        elif value != before:
            self._show(before)


LABELS = {"lr": "lr (learning rate)"}
DECADES = {"eps": (-12, 0)}


class Scale(NamedTuple):
    """Of a slider: its ends, the position of a value on it, and the value at a position, to three digits."""

    low: float
    high: float
    position: Callable[[float], float]
    value: Callable[[float], float]


FRACTION = Scale(0.0, 5.0, lambda y: min(5.0, -math.log10(1 - y)), lambda x: 1 - float(f"{10**-x:.3g}"))
"""From 0 to 1, logarithmic in the distance to 1: what is between 0.9 and 0.999 matters."""


def _decades(low: float, high: float) -> Scale:
    """Logarithmic, over some powers of ten."""
    return Scale(
        low,
        high,
        lambda y: min(high, max(low, math.log10(y))) if y > 0 else low,
        lambda x: float(f"{10**x:.3g}"),
    )


TITLES = {"accuracy": "accuracy (fraction of samples)", "lr": "learning rate (per step)"}


class Chart:
    """One quantity over the steps."""

    def __init__(self, watcher: Watcher, name: str) -> None:
        self._follower, self._name = watcher, name
        unit = ((watcher.now or {}).get("units") or {}).get(name)
        title = TITLES.get(name) or name.replace("_", " ") + (f" ({unit})" if unit else "")
        self._chart = (
            ui.echart(
                {
                    "animation": False,
                    "grid": {"left": 72, "right": 24, "top": 48, "bottom": 44},
                    "legend": {"top": 0, "right": 24, "textStyle": {"color": INK}, "itemWidth": 36},
                    "tooltip": {"trigger": "axis"},
                    "xAxis": _axis("step (number)")
                    | {"type": "value", "min": 0, "nameLocation": "middle", "nameGap": 26},
                    "yAxis": _axis(title)
                    | {"type": "value", "nameLocation": "end"}
                    | {"nameTextStyle": {"align": "left", "color": INK, "padding": [0, 0, 0, -56]}}
                    | ({"min": 0, "max": 1} if name == "accuracy" else {}),
                    "series": [],
                }
            )
            .style("width: 100%; height: 245px")
            .mark(f"{name} chart")
        )

    def draw(self) -> None:
        """Draw what there is now."""
        watcher = self._follower
        points, left = curves.parted(watcher.points)
        rows, _ = curves.parted(watcher.rows)
        points, rows = ([row for row in known if self._name in row] for known in (points, rows))
        if self._name == "lr":
            both, left = curves.parted(sorted([*watcher.points, *watcher.rows], key=lambda row: row["seconds"]))
            series = [curves.line("learning rate", both, "lr", MOMENT, step="end")]
        else:
            series = [curves.line("at the moment", points, self._name, MOMENT)]
            series.append(curves.line("as recorded", rows, self._name, EPOCH, dash="dotted", symbol="circle"))
            if any(f"test_{self._name}" in row for row in rows):
                series.append(curves.line("test", rows, f"test_{self._name}", TEST, dash="dashed", symbol="triangle"))
        if left:
            series.append(curves.line("left by a rollback", left, self._name, GREY, dash=[2, 4]))
        series[0]["markLine"] = curves.marks(watcher.events)
        self._chart.options["series"] = series
        self._chart.options["legend"]["data"] = [
            {"name": line["name"], "itemStyle": {"opacity": 0 if line["symbol"] == "none" else 1}} for line in series
        ]
        if self._name != "accuracy":
            known = [y for line in series for _, y in line["data"] if y is not None]
            axis = self._chart.options["yAxis"]
            if curves.spans_decades(known) or (self._name in {"loss", "lr"} and min(known, default=1) > 0):
                axis |= {"type": "log", **curves.decades(known)}
            else:
                axis |= {"type": "value", "min": None, "max": None}
        self._chart.update()


def _axis(name: str) -> dict[str, Any]:
    lines = {"axisLine": {"show": True, "lineStyle": {"color": INK}}, "splitLine": {"lineStyle": {"color": "#e6e6e6"}}}
    return {"name": name, "nameTextStyle": {"color": INK}, "axisLabel": {"color": INK}, **lines}


def _show_images(watcher: Watcher, row: ui.row, shown: dict[str, tuple[Any, int]]) -> None:
    """Show the pictures that are new, and those that changed."""
    for name, (version, read) in watcher.images().items():
        image, known = shown.get(name, (None, -1))
        if image is None:
            with row, ui.column().style("gap: 2px"):
                image = ui.element("img").classes("picture").props(f'alt="{name}"').mark(name)
                ui.label(name).classes("muted")
        if known != version:
            image.props(f'src="data:image/png;base64,{base64.b64encode(read()).decode()}"')
        shown[name] = image, version
