"""What processes agree on before anything is changed, and the error that all of them raise where they do not."""

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
    """One process failed, or wanted something else than the others: the same error on all, and nothing has changed.

    Attributes
    ----------
    ranks : tuple of int
        The processes that are to blame; empty if it is not known, as after a time-out.
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
    """Go on if all processes are well and see the same; one small reduction.

    Parameters
    ----------
    error
        What went wrong in this process, if anything did.
    view
        What must be the same everywhere, by a name for messages.
    wish
        A number that this process wishes all to know.

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


def agreed(transport: Transport, make: Callable[[], T]) -> T:
    """Return what this process makes before an exchange, once every process has made its own; or raise as `agree` does.

    So memory that an exchange needs is there on all processes when it begins, or it does not begin on any.
    """
    error: Exception | None = None
    try:
        made = make()
    except Exception as caught:  # noqa: BLE001 - all processes are told
        error = caught
    agree(transport, error, {})
    return made


def listed(failed: Mapping[int, str], size: int, most: int = 8) -> str:
    """What failed where, in words.

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
    """For each process that sees something else than rank 0: what differs, in words."""
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
    """Have an uncaught exception of this process end all of them, instead of leaving the others to wait for it."""
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
