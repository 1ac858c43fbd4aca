"""The demo's live view: each SLO against its limit, the run's steps, and what happened, newest last.

On a terminal it redraws in place; elsewhere each event is one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

BAR_WIDTH = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauge:
    """One SLO as it stands."""

    label: str
    observed: str
    limit: str
    share: float
    """0: nothing of the limit is used; 1: at the limit; above: breached."""
    samples: int


@dataclass(slots=True)
class Scene:
    """What the view shows."""

    place: str
    serving: str = "nothing"
    phase: str = "starting"
    elapsed_s: float = 0.0
    budget_s: float = 90.0
    gauges: tuple[Gauge, ...] = ()
    steps: tuple[tuple[str, str], ...] = ()
    """Step and `done`, `now` or `later`."""
    requests: int = 0
    failed: int = 0
    events: list[str] = field(default_factory=list)


class LiveView:
    """Shows a scene; `say` adds an event."""

    def __init__(self, place: str, clock_s: Callable[[], float], *, quiet: bool, picture: Path | None = None) -> None:
        self.scene = Scene(place=place)
        self._clock_s = clock_s
        self._started_s = clock_s()
        self._quiet = quiet
        self._picture = picture
        self._console = Console(file=sys.stderr, width=100 if picture else None, record=picture is not None)
        self._live: Live | None = None
        if not quiet and self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=True)
            self._live.start()

    def say(self, text: str) -> None:
        """One event, prefixed with the seconds since the demo began."""
        self.scene.elapsed_s = self._clock_s() - self._started_s
        line = f"{self.scene.elapsed_s:5.1f} s  {text}"
        self.scene.events.append(line)
        if not self._quiet and self._live is None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        self.draw()

    def draw(self) -> None:
        """Show the scene as it is now."""
        self.scene.elapsed_s = self._clock_s() - self._started_s
        if self._live is not None:
            self._live.update(render(self.scene))

    def take_picture(self) -> None:
        """Write what the view shows now as SVG, when a picture was asked for."""
        if self._picture is None:
            return
        shot = Console(record=True, width=100, file=Path("/dev/null").open("w"))  # noqa: SIM115 - closed with the process
        shot.print(render(self.scene))
        text = shot.export_svg(title="rearguard demo")
        start, end = text.find("@font-face"), text.rfind("@font-face")
        if start >= 0:
            # The exported style names fonts on a foreign host; a picture of ours asks nobody.
            text = text[:start] + text[text.find("}", end) + 1 :]
        self._picture.write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Leave the last scene on the terminal."""
        if self._live is not None:
            self._live.stop()
            self._console.print(render(self.scene))
            self._live = None


def render(scene: Scene) -> RenderableType:
    """A scene as text blocks."""
    slos = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("SLO", "now", "limit", "", "samples"):
        slos.add_column(heading, justify="left", style="bold" if heading == "SLO" else "")
    for gauge in scene.gauges:
        style = "red" if gauge.share > 1 else ("yellow" if gauge.share > 0.8 else "green")
        slos_bar = _bar(gauge.share, style)
        slos.add_row(gauge.label, Text(gauge.observed, style=style), gauge.limit, slos_bar, str(gauge.samples))
    steps = Text()
    for name, state in scene.steps:
        sign, style = {"done": ("✓", "green"), "now": ("●", "bold yellow"), "later": ("○", "dim")}[state]
        steps.append(f"{sign} {name}  ", style=style)
    done = min(1.0, scene.elapsed_s / scene.budget_s)
    clock = Text(
        "▕" + "█" * round(done * 40) + " " * (40 - round(done * 40)) + f"▏ {scene.elapsed_s:.0f} s", style="dim"
    )
    head = Text.assemble(
        (scene.place, "bold"),
        "  serving ",
        (scene.serving, "bold cyan"),
        "  ",
        (scene.phase, "bold"),
        f"  requests {scene.requests}, failed {scene.failed}",
    )
    body = Group(
        head, Text(""), slos, Text(""), steps, Text(""), *[Text(e, style="dim") for e in scene.events[-9:]], clock
    )
    return Panel(body, title="Rearguard", border_style="cyan", width=100)


def _bar(share: float, style: str) -> Text:
    """How much of the limit is used; the mark is the limit itself, two thirds along."""
    limit_at = BAR_WIDTH * 2 // 3
    filled = min(BAR_WIDTH, round(share * limit_at))
    bar = Text()
    for cell in range(BAR_WIDTH):
        if cell == limit_at:
            bar.append("┃", style="bold")
        bar.append(*(("█", style) if cell < filled else ("·", "dim")))
    return bar
