"""Asks a server for everything that is wanted and not yet in the journal.

An answer counts once the journal has it on disk, and only then does its place ask for the next;
answers that arrive together share one flush. So a run that is killed at any moment repeats at most
as many requests as may be in flight.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp

from pipelines.progress import Bar, progress, say
from synth.journal import Answer, Journal
from synth.prompt_layout import Layout
from synth.sampling import Request
from synth.served_model import ServedModel

PAUSE_S = 1.0
"""Between two tries while the server does not answer."""


@dataclass(frozen=True)
class ClientSettings:
    """How to ask: none of it is part of what an answer is.

    Raises:
        ValueError: a setting is out of its range.
    """

    concurrency: int = 64
    """Requests in flight; a killed run repeats at most these."""
    patience_s: float = 600.0
    """How long a server may be away, for example while it is started again."""
    timeout_s: float = 600.0
    """For one answer."""

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"ClientSettings: concurrency is {self.concurrency}; wanted 1 or more")


def nothing() -> None:
    """The check of a server that another process runs."""


def missing(requests: Iterable[Request], journal: Journal) -> list[Request]:
    """Returns the requests without an answer, each identity once, in order."""
    left = {request.identity: request for request in requests if request.identity not in journal}
    return list(left.values())


def generate(
    requests: Iterable[Request],
    layout: Layout,
    server: ServedModel,
    journal: Journal,
    settings: ClientSettings | None = None,
    check: Callable[[], None] = nothing,
) -> int:
    """Asks for the answers that the journal lacks and returns how many these were.

    Args:
        requests: what is wanted.
        layout: reads the answers.
        server: whom to ask.
        journal: gets every answer.
        settings: how to ask.
        check: called between two tries; raises if the server will not come back.

    Raises:
        RuntimeError: the server refused a request, or was away for longer than `patience_s`.
            What was answered is in the journal.
    """
    left = missing(requests, journal)
    if left:
        with progress("generate", len(left), "answer") as bar:
            client = _Client(layout, server, journal, settings or ClientSettings(), check, bar)
            asyncio.run(client.run(iter(left), len(left)))
    return len(left)


class _Client:
    """One run of `generate`."""

    def __init__(
        self,
        layout: Layout,
        server: ServedModel,
        journal: Journal,
        settings: ClientSettings,
        check: Callable[[], None],
        bar: Bar,
    ) -> None:
        self._layout, self._server, self._journal = layout, server, journal
        self._settings, self._check, self._bar = settings, check, bar
        self._answers: asyncio.Queue[tuple[Answer, asyncio.Future[None]]] = asyncio.Queue()
        self._heard = time.monotonic()  # when the server last answered
        self._away = False

    async def run(self, requests: Iterator[Request], number: int) -> None:
        """Answers all requests.

        Raises:
            RuntimeError: see `generate`.
        """
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_s)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            try:
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self._write(number))
                    for _ in range(min(self._settings.concurrency, number)):
                        tasks.create_task(self._ask_each(session, requests))
            except BaseExceptionGroup as group:
                raise group.exceptions[0] from None

    async def _write(self, number: int) -> None:
        """Puts answers into the journal, all that wait at once."""
        while number:
            waiting = [await self._answers.get()]
            while not self._answers.empty():
                waiting.append(self._answers.get_nowait())
            await asyncio.to_thread(self._journal.append, [answer for answer, _ in waiting])
            for _, written in waiting:
                written.set_result(None)
            self._bar.advance(len(waiting))
            number -= len(waiting)

    async def _ask_each(self, session: aiohttp.ClientSession, requests: Iterator[Request]) -> None:
        for request in requests:
            body = request.body(self._server.name)
            while (found := await self._try(session, request.path, body)) is None:
                await self._wait()
            choice = found["choices"][0]
            text, likelihoods = self._layout.received(choice)
            answer = Answer(
                request.identity,
                text,
                choice["finish_reason"],
                tuple(choice["token_ids"]),
                tuple(likelihoods),
            )
            written = asyncio.get_running_loop().create_future()
            self._answers.put_nowait((answer, written))
            await written

    async def _try(self, session: aiohttp.ClientSession, path: str, body: dict[str, Any]) -> Any:
        """Sends one request; None if the server is away.

        Raises:
            RuntimeError: the server refuses the request.
        """
        try:
            async with session.post(f"{self._server.url}{path}", json=body) as response:
                if response.status < 400:
                    found = await response.json()
                    self._heard = time.monotonic()
                    if self._away:
                        say("synth: the server is back")
                    self._away = False
                    return found
                text = (await response.text())[:1_000]
        except (aiohttp.ClientError, TimeoutError) as error:
            self._say_away(f"{type(error).__name__}: {error}")
            return None
        if response.status >= 500:  # the engine behind it may be dead; it then goes away
            self._say_away(f"{response.status}: {text}")
            return None
        raise RuntimeError(
            f"synth: {self._server.url}{path} refused a request with {response.status}: {text}\n"
            f"404 says that another model is served there now; else change sampling or layout."
        )

    def _say_away(self, why: str) -> None:
        if not self._away:
            self._away = True
            say(
                f"synth: {self._server.url} does not answer ({why}); trying again for up to "
                f"{self._settings.patience_s:.0f} s"
            )

    async def _wait(self) -> None:
        """Pauses between two tries.

        Raises:
            RuntimeError: the server has been away for too long.
        """
        self._check()
        away = time.monotonic() - self._heard
        if away > self._settings.patience_s:
            raise RuntimeError(
                f"synth: {self._server.url} has not answered for {away:.0f} s. What was answered "
                f"is in {self._journal.path}; start the server and run the same command again."
            )
        await asyncio.sleep(PAUSE_S)
