"""What all commands are part of: the command line itself, its streams, and how errors are told."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gpuopt.errors import ExplodedError, GPUFailure, Interrupted, UsageError
from gpuopt.rules import RULES
from gpuopt.suggest import did_you_mean, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Command", "aligned", "app", "main"]

LONGEST = 4000
"""Characters of an error, whatever stands in a file."""


class Commands(TyperGroup):
    """Commands; the error for an unknown one that is an option of `tune` names that."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; ``help`` and ``help COMMAND`` are ``--help``."""
        return super().parse_args(ctx, [*args[1:], "--help"] if args[:1] == ["help"] else args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; an error for one that is none."""
        try:
            return super().resolve_command(ctx, args)
        except Exception as error:
            option = f"--{args[0]}"
            if self._has("tune", option) and hasattr(error, "message"):
                usages = {"train": f"train {option} RUN", "tune": f"tune RUN {option}"}
                meant = [usage for name, usage in usages.items() if self._has(name, option)]
                error.message = f"No such command: {args[0]} (did you mean {' or '.join(meant)}?)"
            raise

    def _has(self, name: str, option: str) -> bool:
        return any(option in parameter.opts for parameter in self.commands[name].params)


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Command(TyperCommand):
    """A command whose errors are told plainly, and which knows what an unknown option is called here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; an error for an unknown option names the one that was probably meant."""
        given = [text.rpartition("=")[2] for text in args]  # of which the parser leaves nothing
        try:
            return super().parse_args(ctx, args)
        except Exception as raised:
            error: Any = raised
            option = getattr(error, "option_name", None)  # of NoSuchOption, which typer does not export
            if option is not None and hasattr(error, "possibilities") and hasattr(error, "message"):
                options = [name for parameter in self.get_params(ctx) for name in parameter.opts]
                error.message += did_you_mean(option, options, shown=str) or _set_instead(option, options)
                error.possibilities = None
            elif re.search("valid (number|float)", getattr(error, "message", "")):
                commas = [text for text in given if re.fullmatch(r"[-+]?\d*,\d+", text)]
                told = [f" ({text} has a decimal comma; expected {text.replace(',', '.')})" for text in commas]
                error.message += "".join(told)
            raise

    def invoke(self, ctx: Any) -> Any:
        """Run it."""
        with told_plainly():
            return super().invoke(ctx)


def _set_instead(option: str, options: list[str]) -> str:
    """The hint that a hyperparameter is set by ``--set``."""
    names = dict.fromkeys(name for rule in RULES.values() for name in rule.hyperparameters())
    name = option.lstrip("-").replace("-", "_")
    return f" (did you mean --set {name}=VALUE?)" if name in names and "--set" in options else ""


def main() -> None:
    """Run the command line."""
    _open_standard_streams()
    try:
        app(prog_name="gpuopt")
    except (OSError, UnicodeEncodeError) as error:  # of what is printed on, as of a full disk
        with contextlib.suppress(OSError):
            typer.echo(f"gpuopt: {getattr(error, 'strerror', None) or error}", err=True)
        sys.exit(1)
    finally:
        _flush()
        gc.freeze()  # what is left goes with the process: to look for cycles in it takes longer than all else at the end


def _open_standard_streams() -> None:
    """Have something behind the descriptors 0 to 2: one that is closed would become that of the next file, a run's for instance."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest that is free
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115  (till the end)


def _flush() -> None:
    """Let go of what cannot be printed any more: the interpreter would try it again at its end, and fail by that."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _print_version(wanted: bool) -> None:
    if wanted:
        import gpuopt

        typer.echo(f"gpuopt {gpuopt.__version__}")
        raise typer.Exit


@app.callback()
def gpuopt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Gradient-descent optimizers for NumPy and CuPy arrays, and a network to watch them train.

    Training runs on an NVIDIA GPU through CuPy where there is one that works, and on the CPU through NumPy where there
    is none; the first line says which, and why. Every run leaves a folder with its configuration, metrics, parameters
    and a summary, and can be resumed from there.

    \b
    Examples:
      gpuopt train
          Train a small network on three spiral arms.
      gpuopt train --data mnist.npz --hidden 256,128 --epochs 5
          Train on your own data, a few passes over it.
      gpuopt train --optimizer SGD --lr 1 --schedule inverse_time:decay=1e-3 --set momentum=0.9
          Choose the optimizer and how its learning rate falls.
      gpuopt tune runs/FOLDER lr=0.01
          Change a training while it runs.
      gpuopt info
          See which device would be taken, and what is missing for another.

    `gpuopt COMMAND --help` explains each command and its options.
    """


@contextlib.contextmanager
def told_plainly() -> Iterator[None]:
    """Print what the user can do something about as one line on standard error, and leave with a fitting exit code."""
    from gpuopt.backends import BackendUnavailable

    try:
        yield
    except Interrupted as error:
        code, message = 128 + error.signum, str(error)
    except (UsageError, BackendUnavailable) as error:
        code, message = 2, str(error)
    except BrokenPipeError:
        raise  # nobody reads on, as after `| head`: typer leaves quietly
    except (ExplodedError, GPUFailure, OSError) as error:
        code, message = 1, str(error)
        if isinstance(error, OSError) and error.filename is not None:
            message = f"{error.filename2 or error.filename}: {error.strerror}"
        if isinstance(error, FileNotFoundError) and error.filename is None:  # os.getcwd names none
            message = f"{message}: the current folder was removed; change to one that exists"
    except MemoryError as error:
        code, message = 1, f"there is not enough memory: {str(error) or 'nothing is left'}"
    else:
        return
    first, *more = message.splitlines() or [""]
    line = " ".join([first, "; ".join(one.strip() for one in more)]).strip()
    with contextlib.suppress(OSError):  # the exit code tells it, too
        typer.echo(f"gpuopt: {printable(line, LONGEST)}", err=True)
    raise typer.Exit(code)


def aligned(rows: list[list[str]]) -> str:
    """A table in columns: the first one and the last one to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    ends = (0, len(widths) - 1)
    lines = [
        "  ".join(
            cell.ljust(w) if i in ends else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
