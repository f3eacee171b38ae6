"""One process leads, the others follow: what rank 0 calls, all do; and what all agree on."""

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
"""What rank 0 does and the others follow in."""


class Led:
    """Base class of an optimizer of many processes: who leads, and what is agreed."""

    _transport: Transport
    _lock: threading.RLock
    _role: Role = "equal"
    _announced = 0
    wish = wished = 0

    @property
    def rank(self) -> int:
        """See the class."""
        return self._transport.rank

    @property
    def size(self) -> int:
        """See the class."""
        return self._transport.size

    @property
    def leads(self) -> bool:
        """Whether others follow what is done here."""
        return self._role == "leader"

    @contextlib.contextmanager
    def leading(self, role: Role = "leader") -> Iterator[None]:
        """On rank 0: what is called in here, others that `follow` do, too; or again nobody, as an "equal"."""
        before, self._role = self._role, role
        try:
            yield
        finally:
            self._role = before

    def say(self, word: str, *args: Any) -> None:
        """On rank 0: let the others, which `follow`, hear a word of the caller's."""
        self._transport.say((word, args))

    def follow(self) -> tuple[str, tuple[Any, ...]]:
        """On all but rank 0: do as rank 0 does, until it says a word of its own, which is returned with what belongs to it.

        Raises
        ------
        RankError
            If the word is "broken": with what belongs to it as the message.

        """
        before, self._role = self._role, "follower"
        try:
            while True:
                word, args = self._transport.hear()
                if word == "broken":
                    raise RankError(args[0], (0,))
                if word not in LED:
                    return word, args
                with contextlib.suppress(RankError):  # which rank 0 has as well, and says what follows
                    getattr(self, word)(*args)
        finally:
            self._role = before

    @contextlib.contextmanager
    def _led(self, word: str, *args: Any) -> Iterator[None]:
        """Let those who follow do the same, unless this is part of what they do already."""
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
