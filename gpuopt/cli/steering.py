"""What is done to a run that goes on: ``gpuopt tune`` and ``live``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gpuopt.cli.options import SCHEDULED, Going
from gpuopt.errors import UsageError

__all__ = ["live", "tune"]


def tune(
    run: Going,
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=VALUE]...",
            help="Hyperparameters from the next step on, as in lr=0.01, or lr=cosine or another schedule: "
            f"{SCHEDULED}. A bad value changes nothing.",
        ),
    ] = None,
    rollback: Annotated[
        str | None,
        typer.Option(
            metavar="last|change|best|STEPS",
            help="Go back to the last good state, to the one before the last change, to the best one, or to the checkpoint "
            "after so many steps; hyperparameters become what they were.",
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write a checkpoint now.")] = False,
    pause: Annotated[bool, typer.Option("--pause", help="Wait, until it is resumed.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on.")] = False,
    step: Annotated[bool, typer.Option("--step", help="Take one step, and wait.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="End the training, after saving it.")] = False,
) -> None:
    """Change a running training from another terminal.

    Prints what became of it; with nothing to change, where the training stands. Every change is an event in the run's
    metrics.jsonl, and survives a resume. A refused one leaves with exit code 2, and the training goes on.

    \b
    Examples:
      gpuopt tune runs/FOLDER lr=0.01
      gpuopt tune runs/FOLDER --rollback last lr=0.001
      gpuopt tune runs/FOLDER --pause
    """
    chosen = {"save": save, "pause": pause, "resume": resume, "step": step, "stop": stop}
    request: dict[str, Any] = {} if rollback is None else {"rollback": rollback}
    from gpuopt.runs.control.channel import Client
    from gpuopt.runs.record.events import describe, explain
    from gpuopt.runs.record.folder import RunFolder
    from gpuopt.training.config_rule import settings as parsed

    if settings:
        request["tune"] = parsed(settings)
    request |= {name: None for name, wanted in chosen.items() if wanted}
    with Client(RunFolder(run)) as client:
        answer = client.ask(request)
    for event in answer["events"]:
        typer.echo(explain(event))
    if "refused" in answer:
        raise UsageError(answer["refused"])
    if not request:
        now = answer["now"]
        epoch = f", epoch {now['epoch']}/{now['epochs']}" if "epochs" in now else ""
        typer.echo(f"step {now['step']:,} of {now['steps']:,}{epoch}  {describe(now)}")
        typer.echo("  ".join(f"{name}={value}" for name, value in now["hyperparameters"].items()))
        typer.echo(f"can go back to: {', '.join(now['back'])}" + ("; paused" if now["paused"] else ""))


def live(
    run: Going,
    live_host: Annotated[
        str | None, typer.Option("--host", metavar="HOST", help="Address, or ADDRESS:PORT. Default: 127.0.0.1.")
    ] = None,
) -> None:
    """Serve the page of a run that goes on in another terminal, until it ends: curves, pictures and controls.

    Needs gpuopt[live].
    """
    from gpuopt.runs.control.live import serve

    serve(run, live_host)
