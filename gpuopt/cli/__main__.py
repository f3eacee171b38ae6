"""``python -m gpuopt.cli``."""

from gpuopt.cli import main

if __name__ == "__main__":
    main()
