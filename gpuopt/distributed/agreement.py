"""Agreement of all processes before anything is changed, and the error that all of them raise otherwise."""

from __future__ import annotations

import hashlib
import sys
import traceback
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gpuopt.distributed.transport import Transport

T = TypeVar("T")


class RankError(RuntimeError):
    """An error of one process, or a difference between processes: raised on all of them, before anything has changed.

    Attributes
    ----------
    ranks : tuple of int
        The processes that caused it; empty if unknown, as after a time-out.
    everywhere : bool
        Whether every process raises this error.

    Examples
    --------
    >>> import numpy as np
    >>> import gpuopt.distributed
    >>> opt = gpuopt.distributed.Optimizer({"w": np.zeros(3)}, gpuopt.Adam(), None)  # one process, which raises its own error
    >>> try:
    ...     opt.step({"w": np.zeros(2)})
    ... except (gpuopt.distributed.RankError, ValueError) as error:
    ...     print(error)
    grads['w']: shape (2,), expected (3,)
    """

    def __init__(self, message: str, ranks: tuple[int, ...] = (), *, everywhere: bool = True) -> None:
        super().__init__(message)
        self.ranks = ranks
        self.everywhere = everywhere


def agree(transport: Transport, error: BaseException | None, view: Mapping[str, Any], wish: int = 0) -> int:
    """Return if no process has an error and all have the same view, by one small reduction; collective.

    Parameters
    ----------
    error
        The error of this process, or None.
    view
        Values that must be the same everywhere, by their names in messages.
    wish
        A number for all processes.

    Returns
    -------
    int
        The highest wish of all.

    Raises
    ------
    RankError
        On every process, naming the ranks. One process alone raises its own error.

    """
    if transport.size == 1 and error is not None:
        raise error
    digest = int.from_bytes(hashlib.blake2b(repr(view).encode(), digest_size=7).digest(), "little")
    highest = transport.highest(np.array([error is not None, digest, -digest, wish], np.int64))
    if not highest[0] and highest[1] == -highest[2]:
        return int(highest[3])
    own = None if error is None else (f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
    found = transport.told((own, {name: repr(value) for name, value in view.items()}))
    failed = {rank: message for rank, (message, _) in enumerate(found) if message is not None}
    if not failed:
        failed = _differences([seen for _, seen in found])
    raise RankError(listed(failed, transport.size), tuple(failed)) from error


class Failure:
    """Keeps the first error of this process, so that it takes part in every exchange until all `agree` on the error.

    ``with failure: ...`` ends at an error and keeps it, but for a `RankError`, which other processes have as well.

    Examples
    --------
    >>> failure = Failure()
    >>> with failure:
    ...     1 / 0
    >>> failure.error
    ZeroDivisionError('division by zero')

    """

    error: Exception | None = None

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception) or isinstance(error, RankError):
            return False
        self.error = self.error or error
        return True


def agreed(transport: Transport, make: Callable[[], T]) -> T:
    """Return the result of ``make`` once it has succeeded in every process; raise as `agree` does if it has not.

    It allocates memory for an exchange: either all processes begin the exchange, or none.
    """
    failure = Failure()
    with failure:
        made = make()
    agree(transport, failure.error, {})
    return made


def listed(failed: Mapping[int, str], size: int, most: int = 8) -> str:
    """Return a message that names the errors and their ranks.

    Examples
    --------
    >>> listed({1: "ValueError: no", 2: "ValueError: no"}, 4)
    'ranks 1 and 2: ValueError: no'

    """
    by_message: dict[str, list[int]] = {}
    for rank, message in failed.items():
        by_message.setdefault(message, []).append(rank)
    parts = []
    for message, ranks in list(by_message.items())[:most]:
        names = [str(rank) for rank in ranks[:most]] + (["others"] if len(ranks) > most else [])
        who = f"ranks {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"rank {names[0]}"
        parts.append(f"{'every rank' if size > 1 and len(ranks) == size else who}: {message}")
    return "; ".join(parts)


def _differences(seen: list[dict[str, str]]) -> dict[int, str]:
    """Return a message for each process whose view differs from that of rank 0."""
    found = {}
    for rank, own in enumerate(seen):
        differing = [name for name in own if own[name] != seen[0].get(name)]
        if differing:
            what = "; ".join(f"{name} is {_short(own[name])}, on rank 0 {_short(seen[0][name])}" for name in differing)
            found[rank] = f"{what}; expected the same on every rank"
    return found


def _short(text: str, most: int = 300) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def install_hook(transport: Transport) -> None:
    """Let an uncaught exception of this process end all processes, which would wait for it otherwise."""
    before = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, RankError) and error.everywhere and transport.rank:
            transport.leave(patience=2.0)  # rank 0 says what all would say
            return
        before(kind, error, trace)
        if before is not sys.__excepthook__ and not isinstance(error, Exception):
            traceback.print_exception(error)
        sys.stderr.flush()
        transport.leave()

    sys.excepthook = hook
