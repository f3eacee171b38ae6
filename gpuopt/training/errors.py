"""The one error that tells a person about their input."""

__all__ = ["UsageError"]


class UsageError(ValueError):
    """An option, a file or a folder that a run cannot use; the message says which, why, and what was expected.

    It is raised before anything is written. The command line prints it without a traceback.
    """
