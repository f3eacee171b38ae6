"""The errors that tell a person what to do."""

__all__ = ["ExplodedError", "Interrupted", "SavingError", "UsageError"]


class UsageError(ValueError):
    """An option, a file or a folder that a run cannot use; the message says which, why, and what was expected.

    It is raised before anything is written. The command line prints it without a traceback.
    """


class ExplodedError(RuntimeError):
    """A training whose parameters or loss exploded; the message says when, what is saved, and how to go on."""


class SavingError(OSError):
    """A checkpoint or the metrics could not be written; the message says which one is whole, and how to go on."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a training; the message says where its checkpoint is and how to go on."""

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum
