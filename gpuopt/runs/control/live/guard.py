"""Who may talk to the page: who knows its address, and comes from there."""

from __future__ import annotations

import contextlib
import hmac
import ipaddress
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container

    Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]

__all__ = ["Guard"]


METHODS = ("GET", "HEAD", "POST", "OPTIONS")


class Guard:
    """An ASGI application before another one. What does not belong there is answered with 403.

    The first part of every path must be the token. The header ``Host`` must say one of `hosts`, which keeps pages away whose
    name was made to lead here, or, with `addresses`, any number such as ``10.0.0.7:8080``: nobody makes these lead elsewhere.
    """

    def __init__(self, app: Application, token: str, hosts: Container[str], *, addresses: bool = False) -> None:
        self._app, self._token, self._hosts, self._addresses = app, token, hosts, addresses

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope.get("method", "GET") not in METHODS:
            await _answer(send, 405, f"405: expected {', '.join(METHODS)}")
        elif scope["type"] == "lifespan" or self._is_welcome(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: a 403
        else:
            await _answer(send, 403, "403: this address needs its token")

    def _is_welcome(self, scope: Any) -> bool:
        given = scope["path"].split("/")[1].encode()
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        origin = headers.get(b"origin", f"http://{host}".encode()).decode("latin-1")
        known = host in self._hosts
        if self._addresses and not known:
            with contextlib.suppress(ValueError):  # a name
                ipaddress.ip_address(host.rpartition(":")[0].strip("[]"))
                known = True
        return hmac.compare_digest(given, self._token.encode()) and known and origin == f"http://{host}"


async def _answer(send: Callable[[Any], Awaitable[None]], status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain"), *([(b"allow", ", ".join(METHODS).encode())] if status == 405 else [])]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"{text}\n".encode()})
