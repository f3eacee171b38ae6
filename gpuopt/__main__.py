"""The command ``gpuopt``, or what to install for it."""

import sys


def main() -> None:
    """Run the command line; without the extra ``train``, say how to get it and leave with 2."""
    try:
        from gpuopt import cli
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "typer":
            raise
        sys.exit(_missing())
    except KeyboardInterrupt:  # before it does anything
        sys.exit(130)
    cli.main()


def _missing() -> int:
    cure = 'pip install "gpuopt[train]"'
    print(f"gpuopt: the command needs the extra `train`, which is not installed; run `{cure}`", file=sys.stderr)  # noqa: T201
    return 2


if __name__ == "__main__":
    main()
