"""The command ``gpuopt``, or what to install for it."""

import _signal  # type: ignore[import-not-found]  # `signal` has enumerations made, in which Ctrl-C would be told at length
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import FrameType


def main() -> None:
    """Run the command line; without the extra ``train``, say how to get it and leave with 2."""
    _signal.signal(_signal.SIGINT, _interrupt)
    try:
        from gpuopt import cli

        cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        sys.exit(_missing())
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        _signal.signal(
            _signal.SIGINT, _signal.SIG_DFL
        )  # all is done: the interpreter may be left in the middle of its end


def _interrupt(signum: int, frame: "FrameType | None") -> None:
    """Raise KeyboardInterrupt; in the middle of an import leave at once, where a library in C would make another error of it."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def _missing() -> int:
    cure = 'pip install "gpuopt[train]"'
    print(f"gpuopt: the command needs the extra `train`, which is not installed; run `{cure}`", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
