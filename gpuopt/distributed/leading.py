"""Rank 0 leads and the others follow: a method that rank 0 calls is called on all processes."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gpuopt.distributed.agreement import RankError, agree

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator, Mapping

    from gpuopt.distributed.transport import Transport

Role: TypeAlias = Literal["equal", "leader", "follower"]
LED = ("_load", "_retune", "_save", "evaluation", "state_dict")
"""Methods that followers call when rank 0 does."""


class Led:
    """Base class of an optimizer of many processes: leading, following, and the agreement."""

    _transport: Transport
    _lock: threading.RLock
    _role: Role = "equal"
    _announced = 0
    wish = wished = 0

    @property
    def rank(self) -> int:
        """Index of this process."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """Number of processes."""
        return self._transport.size

    @property
    def leads(self) -> bool:
        """Whether other processes follow this one."""
        return self._role == "leader"

    @contextlib.contextmanager
    def leading(self, role: Role = "leader") -> Iterator[None]:
        """On rank 0: within this context the others, which `follow`, call the same methods; as "equal" they do not."""
        before, self._role = self._role, role
        try:
            yield
        finally:
            self._role = before

    def say(self, word: str, *args: Any) -> None:
        """On rank 0: send a word and its arguments to the others, whose `follow` returns them."""
        self._transport.say((word, args))

    def follow(self) -> tuple[str, tuple[Any, ...]]:
        """On all but rank 0: call the methods that rank 0 calls, until it says a word; return the word and its arguments.

        Raises
        ------
        RankError
            If the word is "broken"; its argument is the message.

        """
        before, self._role = self._role, "follower"
        try:
            while True:
                word, args = self._transport.hear()
                if word == "broken":
                    raise RankError(args[0], (0,))
                if word not in LED:
                    return word, args
                with contextlib.suppress(RankError):  # rank 0 has the same error, and decides
                    getattr(self, word)(*args)
        finally:
            self._role = before

    @contextlib.contextmanager
    def _led(self, word: str, *args: Any) -> Iterator[None]:
        """Announce a method to the followers, unless it is called within one that has been announced."""
        with self._lock:
            if self._role == "leader" and not self._announced:
                self.say(word, *args)
            self._announced += 1
            try:
                yield
            finally:
                self._announced -= 1

    def _agree(self, error: Exception | None, view: Mapping[str, Any], wish: int = 0) -> None:
        self.wished = max(self.wished, agree(self._transport, error, view, wish))
