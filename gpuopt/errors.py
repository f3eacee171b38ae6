"""The errors of runs and of the command line, whose messages say what to do."""

__all__ = ["ExplodedError", "Interrupted", "SavingError", "UsageError"]


class UsageError(ValueError):
    """An option, a file or a folder that a run cannot use; the message says which, why, and what was expected.

    It is raised before anything is written. The command line prints it without a traceback.

    Examples
    --------
    >>> from gpuopt.training import Config, UsageError
    >>> try:
    ...     Config(epochs=-1)
    ... except UsageError as error:
    ...     print(error)
    --epochs -1: expected a positive integer below 2**53
    """


class ExplodedError(RuntimeError):
    """A training whose parameters or loss exploded; the message says when, what is saved, and how to go on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, ExplodedError, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         train(Config(optimizer="SGD", lr=1e6, epochs=200), out=f"{folder}/run", report=False)
    ...     except ExplodedError as error:
    ...         print(str(error)[:21])
    the training exploded
    """


class SavingError(OSError):
    """A checkpoint or the metrics could not be written; the message says which one is whole, and how to go on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, SavingError, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         done = train(Config(epochs=1), out=f"{folder}/run", report=False)
    ...     except SavingError as error:  # a full disk, for instance
    ...         print(error)
    >>> done.epochs
    1
    """


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a training; the message says where its checkpoint is and how to go on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, Interrupted, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         done = train(Config(epochs=1), out=f"{folder}/run", report=False)
    ...     except Interrupted as error:  # Ctrl-C
    ...         print(error)
    >>> done.epochs
    1
    """

    def __init__(self, message: str, signum: int) -> None:
        super().__init__(message)
        self.signum = signum


class GPUFailure(RuntimeError):  # noqa: N818  (it is the GPU's failure, like BackendUnavailable)
    """The GPU failed in the middle of a training; the message says how, where its checkpoint is and how to go on.

    Examples
    --------
    >>> import tempfile
    >>> from gpuopt.training import Config, GPUFailure, train
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     try:
    ...         done = train(Config(epochs=1), out=f"{folder}/run", report=False)
    ...     except GPUFailure as error:
    ...         print(error)
    >>> done.epochs
    1
    """
