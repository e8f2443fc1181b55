"""math-verify in a process of its own, because SymPy can take for ever over a short expression.

Source: Hugging Face, Math-Verify 0.9 (github.com/huggingface/Math-Verify).
"""

import logging
import multiprocessing
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from types import TracebackType

from math_verify import parse, verify

TIMEOUT_S = 10.0
START_TIMEOUT_S = 120.0
"""Importing SymPy takes a second, on a busy machine many."""


class MathVerifier:
    """Compares answers as mathematics: 0.5 is 1/2.

    Use it as a context; its process ends with it.
    """

    def __init__(self, timeout_s: float = TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._known: dict[tuple[str, str], bool | None] = {}
        self._process: BaseProcess | None = None
        self._pipe: Connection | None = None

    def __enter__(self) -> "MathVerifier":
        """Returns the verifier."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends the process."""
        self._end()

    def accepts(self, expected: str, answer: str) -> bool | None:
        """Says whether two answers are equal; None if it takes too long or fails."""
        question = (expected, answer)
        if question not in self._known:
            self._known[question] = self._ask(question)
        return self._known[question]

    def _ask(self, question: tuple[str, str]) -> bool | None:
        pipe = self._started()
        pipe.send(question)
        if pipe.poll(self._timeout_s):
            try:
                return pipe.recv()
            except EOFError:  # the process died of the expression, of memory for example
                self._end()
                return None
        self._end()
        return None

    def _started(self) -> Connection:
        if self._pipe is None:
            # spawned: a forked process would keep the pipe of a server that we supervise open
            context = multiprocessing.get_context("spawn")
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_answer_all, args=(theirs,), daemon=True)
            self._process.start()
            theirs.close()
            if not self._pipe.poll(START_TIMEOUT_S):
                self._end()
                raise RuntimeError(f"math-verify did not start within {START_TIMEOUT_S:.0f} s")
            self._pipe.recv()
        return self._pipe

    def _end(self) -> None:
        if self._process is not None and self._pipe is not None:
            self._pipe.close()
            self._process.kill()
            self._process.join()
        self._process = self._pipe = None


def _answer_all(pipe: Connection) -> None:
    """Answers questions until the other end is closed; None stands for a failure."""
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of timeouts that we set
    pipe.send("ready")
    while True:
        try:
            expected, answer = pipe.recv()
        except EOFError:
            return
        pipe.send(_equal(expected, answer))


def _equal(expected: str, answer: str) -> bool | None:
    # their own timeouts are alarms, which the caller's replace
    try:
        gold = parse(expected, parsing_timeout=None, raise_on_error=True)  # pyright: ignore
        found = parse(answer, parsing_timeout=None, raise_on_error=True)  # pyright: ignore
        return bool(verify(gold, found, timeout_seconds=None, raise_on_error=True))
    except Exception:  # whatever SymPy and ANTLR raise: a verdict of None, which is kept
        return None
