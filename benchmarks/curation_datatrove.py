"""The peer of benchmarks.curation: datatrove's LocalPipelineExecutor with one task and one worker.

python -m benchmarks.curation_datatrove CORPUS_FOLDER OUT_FOLDER
"""

import json
import sys
from collections import Counter
from pathlib import Path

import fasttext
import pyarrow.parquet as pq
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.filters import (
    GopherQualityFilter,
    GopherRepetitionFilter,
    LanguageFilter,
)
from datatrove.pipeline.readers import ParquetReader
from datatrove.pipeline.writers import ParquetWriter

from filters.language import LanguageId


class LocalModel:
    """datatrove's language model with a file from this disk instead of a download."""

    def __init__(self) -> None:
        self._model = None

    def predict(self, doc: Document) -> tuple[tuple[str, float], dict[str, float]]:
        """Asks as datatrove does; a list, since fasttext 0.9.3 fails on a string with numpy 2."""
        if self._model is None:
            fasttext.FastText.eprint = lambda _: None
            self._model = fasttext.load_model(str(LanguageId().model))
        labels, scores = self._model.predict([doc.text.replace("\n", " ")], k=-1)
        pairs = {
            label.split("__")[2]: float(score)
            for label, score in zip(labels[0], scores[0], strict=True)
        }
        best = max(pairs.items(), key=lambda pair: pair[1])
        return best, {"en": pairs.get("en", 0.0)}


def language_filter() -> LanguageFilter:
    """Returns datatrove's filter of English with our copy of its model."""
    # it asks for a fork of fasttext by the distribution's name; the official one does the same
    LanguageFilter._requires_dependencies = []
    peer = LanguageFilter(["en"], language_threshold=0.65)
    peer.model = LocalModel()
    return peer


def main(corpus: str, out: str) -> None:
    """Runs filters and the three stages of exact dedup; prints counts as JSON."""
    config = ExactDedupConfig(content_getter=lambda doc: doc.text)
    stages = [
        [
            ParquetReader(corpus, glob_pattern="*.parquet"),
            language_filter(),
            GopherQualityFilter(),
            GopherRepetitionFilter(),
            ParquetWriter(f"{out}/filtered", compression="zstd"),
        ],
        [ParquetReader(f"{out}/filtered"), ExactDedupSignature(f"{out}/signatures", config)],
        [ExactFindDedups(f"{out}/signatures", f"{out}/duplicates", config)],
        [
            ParquetReader(f"{out}/filtered"),
            ExactDedupFilter(f"{out}/duplicates", config),
            ParquetWriter(f"{out}/kept", compression="zstd"),
        ],
    ]
    for number, pipeline in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=1, workers=1, logging_dir=f"{out}/logs/{number}"
        ).run()
    dropped: Counter[str] = Counter()
    for number in range(len(stages)):
        for step in json.loads(Path(f"{out}/logs/{number}/stats.json").read_text()):
            for name, value in step["stats"].items():
                if name.startswith("dropped_"):
                    count = value["total"] if isinstance(value, dict) else value
                    dropped[name.removeprefix("dropped_")] += int(count)
    texts = pq.read_table(corpus, columns=["text"])["text"].to_pylist()
    kept = sum(pq.read_metadata(path).num_rows for path in Path(out, "kept").glob("*.parquet"))
    result = {
        "documents_in": len(texts),
        "kept": kept,
        "dropped": dict(dropped),
        "text_bytes": sum(len(text.encode()) for text in texts),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
