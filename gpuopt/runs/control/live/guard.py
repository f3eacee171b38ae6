"""Who may talk to the page: who knows its address, and comes from there."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["Guard"]


class Guard:
    """An ASGI application before another one. What does not belong there is answered with 403.

    Parameters
    ----------
    app
        Where requests go on to.
    token
        The first part of every path.
    hosts
        What the header ``Host`` may say; None: anything. It keeps pages away whose name was made to lead here.
    """

    def __init__(self, app: Application, token: str, hosts: Container[str] | None) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._is_welcome(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403
        else:
            headers = [(b"content-type", b"text/plain")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": b"403: this address needs its token\n"})

    def _is_welcome(self, scope: Any) -> bool:
        given = scope["path"].split("/")[1].encode()
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", f"http://{host}".encode()).decode("latin-1")
        known = self._hosts is None or host in self._hosts
        return hmac.compare_digest(given, self._token.encode()) and known and origin == f"http://{host}"
