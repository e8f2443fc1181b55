import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiohttp import web

REVISION = "ab" * 32

Reply = Callable[[dict[str, Any]], str | int | None]


class Loopback:
    """A server that speaks as vLLM does, as far as our client listens.

    `reply` gets a request's body and returns the text to answer with, an HTTP status to fail with,
    or None to break the connection off.
    """

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.name = f"model@{REVISION}"
        self.bodies: list[dict[str, Any]] = []
        self.finish_reason = "stop"
        self.delay_s = 0.0
        self.in_flight = self.most_in_flight = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._runner: web.AppRunner | None = None
        self.url = self._call(self._start(0))

    def stop(self) -> None:
        """Goes away; `start` brings it back at the same address."""
        self._call(self._stop())

    def start(self) -> None:
        self._call(self._start(int(self.url.rpartition(":")[2])))

    def close(self) -> None:
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _start(self, port: int) -> str:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": self.name}]})

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s)
            answer = self.reply(body)
        finally:
            self.in_flight -= 1
        if answer is None:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(answer, int):
            return web.json_response({"error": "no"}, status=answer)
        tokens = list(answer.encode())
        choice = {
            "text": answer,
            "finish_reason": self.finish_reason,
            "token_ids": tokens,
            "logprobs": {"token_logprobs": [-0.5] * len(tokens)},
        }
        return web.json_response({"choices": [choice]})


@pytest.fixture
def loopback() -> Iterator[Callable[[Reply], Loopback]]:
    """A function that starts a server with a reply."""
    started: list[Loopback] = []

    def start(reply: Reply) -> Loopback:
        started.append(Loopback(reply))
        return started[-1]

    yield start
    for server in started:
        server.close()
