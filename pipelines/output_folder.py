"""The folder that a run writes into: taken by one run at a time, and never by another recipe's."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.dataset import MANIFEST, WORK, Dataset


def check_output(out: Path, name: str, mark: str, own: frozenset[str] = frozenset()) -> None:
    """Refuses a folder that holds anything but this recipe's dataset or unfinished run.

    Args:
        out: the folder; it need not exist.
        name: of the recipe.
        mark: its fingerprint.
        own: names of files that may be there although no run is.

    Raises:
        ValueError: the folder holds something else; the message says what.
    """
    remedy = "Give another --out, or remove"
    if (out / MANIFEST).is_file():
        held = Dataset(out)
        if held.fingerprint != mark:
            raise ValueError(
                f"{out} holds a dataset of recipe {held.manifest['recipe']['name']} with "
                f"fingerprint {held.fingerprint[:12]}; this one is {name} with {mark[:12]}. "
                f"{remedy} the folder."
            )
    elif (out / WORK).is_dir():
        runs = [path.name for path in (out / WORK).iterdir() if path.is_dir()]
        if any(run != mark[:32] for run in runs):
            raise ValueError(
                f"{out} holds an unfinished run with fingerprint {runs[0][:12]}; this one is "
                f"{name} with {mark[:12]}. {remedy} {out / WORK}"
                + (f": {', '.join(sorted(own))} stays." if own else ".")
            )
    elif out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= own):
        raise ValueError(f"{out} exists and is no dataset. Give an empty or a new folder as --out.")


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keeps a second run out of the folder; the lock dies with the process.

    Raises:
        ValueError: another run holds it.
    """
    (out / WORK).mkdir(parents=True, exist_ok=True)
    with (out / WORK / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another run is writing to {out}; wait for it or stop it") from error
        yield
