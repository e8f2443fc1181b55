"""fastText training that gives the same model bytes for the same lines.

fastText 0.9.3 fills only a part of its input matrix when it trains with few threads and reads the
rest uninitialised: on small data five of six runs end in NaN and none can be repeated. With glibc's
MALLOC_PERTURB_=255 fresh memory is zero, and with one thread nothing else is left to chance. The
variable is read when a process starts, so training runs in one of its own: this module's main.
"""

import json
import os
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ZEROED = {"MALLOC_PERTURB_": "255"}  # malloc fills with the complement


@dataclass(frozen=True)
class FastTextSettings:
    """What fastText is told; the names are ours, the meaning is that of its options.

    Raises:
        ValueError: a number is out of range.
    """

    dimensions: int = 16
    epochs: int = 5
    learning_rate: float = 0.5
    word_ngrams: int = 2
    buckets: int = 200_000
    """Rows that word n-grams share by their hash."""
    min_count: int = 3
    """Rarer words have no row of their own."""

    def __post_init__(self) -> None:
        least = {"dimensions": 1, "epochs": 1, "word_ngrams": 1, "buckets": 1, "min_count": 1}
        for name, number in least.items():
            if getattr(self, name) < number:
                raise ValueError(
                    f"FastTextSettings: {name} is {getattr(self, name)}, wanted {number} or more"
                )
        if not 0 < self.learning_rate <= 10:
            raise ValueError(
                f"FastTextSettings: learning_rate is {self.learning_rate}, wanted above 0, up to 10"
            )


def train_model(lines: Path, model: Path, settings: FastTextSettings) -> None:
    """Trains a supervised softmax model on a file of lines `__label__x words` and saves it.

    Raises:
        RuntimeError: fastText failed, with what it said; or the C library is not glibc, with which
            alone the training can be repeated.
    """
    library = platform.libc_ver()[0]
    if library != "glibc":
        raise RuntimeError(
            f"fastText training needs glibc to be repeatable; the C library here is "
            f"{library or 'unknown'}. Train on Linux with glibc; the model then runs anywhere."
        )
    root = str(Path(__file__).parents[1])
    environment = os.environ | ZEROED
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.getenv("PYTHONPATH")])])
    request = {"lines": str(lines), "model": str(model), "settings": asdict(settings)}
    process = subprocess.run(
        [sys.executable, "-m", "filters.fasttext_training"],
        input=json.dumps(request),
        env=environment,
        capture_output=True,
        text=True,
    )
    if process.returncode:
        raise RuntimeError(
            f"fastText training on {lines} failed ({process.returncode}): "
            f"{process.stderr.strip()[-2000:]}"
        )


def main() -> None:
    """Trains as standard input says."""
    import fasttext

    request = json.load(sys.stdin)
    settings = FastTextSettings(**request["settings"])
    model = fasttext.train_supervised(
        request["lines"],
        dim=settings.dimensions,
        epoch=settings.epochs,
        lr=settings.learning_rate,
        wordNgrams=settings.word_ngrams,
        bucket=settings.buckets,
        minCount=settings.min_count,
        minn=0,
        maxn=0,
        loss="softmax",
        thread=1,
        verbose=0,
    )
    model.save_model(request["model"])


if __name__ == "__main__":
    main()
