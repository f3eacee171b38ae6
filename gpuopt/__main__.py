"""The command ``gpuopt``, or what to install for it."""

import _signal  # type: ignore[import-not-found]  # `signal` builds enumerations, and Ctrl-C in the middle of that would print a traceback
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
    """Raise KeyboardInterrupt; exit at once during an import, where code in C could turn it into another error."""
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
