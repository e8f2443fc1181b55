"""Going back: a run that does not come back by itself goes on from a checkpoint, past what it met.

Leaving updates out (`guard`) helps against a bad batch. Where one bad update follows another, the
weights themselves have gone wrong earlier: the run goes back to the checkpoint before the first
update that was left out, and the stream goes on where it was, so the samples in between are not met
again. Each time is a record in `roll_backs.json`: which steps were undone, which samples they had
seen, and the stream's state from which the run went on. A checkpoint notes how many records there
were; so a run that is killed after going back goes on as if it had not been.

Source: Chowdhery et al. 2022 (PaLM), arXiv:2204.02311, section 5.1: restart from a checkpoint some
100 steps before a spike, and skip 200 to 500 batches.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.atomic import remove_folder
from pipelines.dataset import write_json
from training_hook.checkpoint import checkpoints

FILE = "roll_backs.json"


@dataclass(frozen=True)
class RollBack:
    """One return to a checkpoint."""

    from_step: int
    """The last step that was undone."""
    to_step: int
    """The checkpoint's step; 0 is the beginning."""
    samples: tuple[int, int]
    """Samples [first, end) of the run that the undone steps had seen: not learnt from."""
    stream: dict[str, Any]
    """The stream's state from which the run went on."""
    reason: str
    """The loss and gradient norm that ended the run's first try."""


class Diverged(FloatingPointError):
    """Raised where updates were left out, one after the other.

    Args:
        message: what to tell the user if the run ends here.
        first_step: the first of these updates.
        reason: the loss and gradient norm of the last one.
    """

    def __init__(self, message: str, first_step: int, reason: str) -> None:
        super().__init__(message)
        self.first_step, self.reason = first_step, reason


def read_roll_backs(out: Path) -> list[RollBack]:
    """Returns the records of a run's folder, the oldest first."""
    path = out / FILE
    if not path.exists():
        return []
    rows = json.loads(path.read_text("utf-8"))["roll_backs"]
    return [RollBack(**{**row, "samples": tuple(row["samples"])}) for row in rows]


def go_back(out: Path, roll_backs: Sequence[RollBack]) -> None:
    """Records all returns of a run, and removes the checkpoints that the last one undoes.

    A process killed between the two leaves newer checkpoints, from which the run would diverge
    again, and go back once more.
    """
    write_json(out / FILE, {"roll_backs": [asdict(record) for record in roll_backs]})
    for step, path in checkpoints(out / "checkpoints").items():
        if step > roll_backs[-1].to_step:
            remove_folder(path)


def stream_after(
    roll_backs: Sequence[RollBack], known: int, step: int, stream: dict[str, Any]
) -> dict[str, Any]:
    """Returns the stream's state with which a run goes on from a checkpoint.

    Args:
        roll_backs: all records.
        known: how many of them there were when the checkpoint was saved.
        step: of the checkpoint.
        stream: the state that the checkpoint has.
    """
    since = [record.stream for record in roll_backs[known:] if record.to_step == step]
    return since[-1] if since else stream
