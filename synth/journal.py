r"""The journal: every answer that was paid for, on disk before it counts.

A line is `crc32 {json}\n`. What a killed writer left has no line end and is cut off at the next
opening; a line with an end and a wrong checksum is damage, and is not passed over.
Memory holds the place of each answer only, some 200 bytes.
"""

import fcntl
import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipelines.progress import say


@dataclass(frozen=True)
class Answer:
    """What a model said to one request."""

    identity: str
    """Of the request."""
    text: str
    finish_reason: str
    """stop or length."""
    token_ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    """Of the tokens, natural logarithm, before temperature and top_p."""


class Journal:
    """An append-only file of answers, held open by one process at a time.

    Raises:
        ValueError: another process has it open, or a line is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = path.open("a+b")
        self._places: dict[str, tuple[int, int]] = {}
        self._end = 0
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except BlockingIOError:
            self._file.close()
            raise ValueError(
                f"{path}: another process is writing this journal; wait for it or stop it"
            ) from None
        except ValueError:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        """Returns the journal."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file and with it the lock."""
        self._file.close()

    def __contains__(self, identity: str) -> bool:
        """Says whether a request has been answered."""
        return identity in self._places

    def __len__(self) -> int:
        """Returns how many requests have been answered."""
        return len(self._places)

    def __getitem__(self, identity: str) -> Answer:
        """Returns the answer to a request."""
        start, size = self._places[identity]
        answer = _answer(os.pread(self._file.fileno(), size, start))
        if answer is None:
            raise ValueError(f"{self.path}: the line at byte {start} was damaged while in use")
        return answer

    def append(self, answers: Sequence[Answer]) -> None:
        """Writes answers and returns once they are on disk.

        Raises:
            ValueError: a request has an answer already.
            OSError: the disk is full; the journal is then closed, and its next opening cuts what
                is unfinished.
        """
        places: dict[str, tuple[int, int]] = {}
        end = self._end
        lines = [_line(answer) for answer in answers]
        for answer, line in zip(answers, lines, strict=True):
            if answer.identity in self._places or answer.identity in places:
                raise ValueError(f"{self.path}: request {answer.identity} is answered already")
            places[answer.identity] = (end, len(line))
            end += len(line)
        try:
            self._file.write(b"".join(lines))
            self._file.flush()
            os.fdatasync(self._file.fileno())
        except OSError:
            self._file.close()
            raise
        self._places |= places
        self._end = end

    def _load(self) -> None:
        self._file.seek(0)
        for number, line in enumerate(self._file, 1):
            answer = _answer(line)
            if answer is None and line.endswith(b"\n"):
                raise ValueError(
                    f"{self.path}: line {number} is damaged. A killed run leaves at most a line "
                    f"without an end, so something else wrote here. Restore the file, or remove "
                    f"it to ask everything again."
                )
            if answer is None:
                say(f"synth: cutting {len(line)} bytes of an unfinished line off {self.path}")
                self._file.truncate(self._end)
                os.fsync(self._file.fileno())
                return
            self._places[answer.identity] = (self._end, len(line))
            self._end += len(line)


def _line(answer: Answer) -> bytes:
    data = json.dumps(asdict(answer), separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(data), data)


def _answer(line: bytes) -> Answer | None:
    """Reads a line; None if it is not whole."""
    mark, data = line[:9], line[9:-1]
    if not line.endswith(b"\n") or mark != b"%08x " % zlib.crc32(data):
        return None
    fields = json.loads(data)
    tokens, likelihoods = fields.pop("token_ids"), fields.pop("log_probabilities")
    return Answer(**fields, token_ids=tuple(tokens), log_probabilities=tuple(likelihoods))
