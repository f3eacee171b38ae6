"""``python -m gpuopt``: the command."""

from gpuopt.cli import main

if __name__ == "__main__":
    main()
