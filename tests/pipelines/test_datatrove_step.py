import gzip
import json
import random
import sys
from importlib import reload
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pytest
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4ParagraphFilter,
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    RegexFilter,
)
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.formatters import FTFYFormatter, PIIFormatter, SymbolLinesFormatter
from datatrove.pipeline.formatters.base import BaseFormatter

from pipelines import datatrove_step
from pipelines.datatrove_step import DatatroveFilter, DatatroveFormatter
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, fingerprint
from pipelines.step import broken

FILTERS = "datatrove.pipeline.filters"
FORMATTERS = "datatrove.pipeline.formatters"
HERE = __name__


def texts() -> list[str]:
    """Prose, lists, code, repetition and symbols, so that every block keeps and drops some."""
    rng = random.Random(5)
    words = [
        "the",
        "of",
        "and",
        "to",
        "have",
        "with",
        "river",
        "stone",
        "page",
        "data",
        "tree",
        "light",
        "model",
        "year",
        "city",
    ]
    found = []
    for number in range(40):
        sentences = [
            " ".join(rng.choices(words, k=rng.randint(2, 14))).capitalize()
            + rng.choice([".", ".", "!", " [1].", "", " ..."])
            for _ in range(rng.randint(1, 30))
        ]
        text = rng.choice([" ", "\n"]).join(sentences)
        odd = ["lorem ipsum.", "{ x }", "- one\n- two", "caf\u00c3\u00a9", "***\n", "same.\n" * 9]
        found.append(text + "\n" + rng.choice(odd) if number % 3 else text)
    paragraphs = "\n".join(["A long paragraph of one line. " * 8] * 4)
    return [
        *found,
        paragraphs,
        "mail me@example.net or you@example.net at 8.8.8.8 and 10.0.0.1",
        " ",
    ]


def batch(values: list[str | None], **columns) -> pa.RecordBatch:
    ids = pa.array([f"{i:032x}" for i in range(len(values))])
    return pa.record_batch({"id": ids, "text": pa.array(values, pa.string()), **columns})


@pytest.mark.parametrize(
    ("peer", "arguments"),
    [
        (GopherQualityFilter, {"min_doc_words": 20, "min_stop_words": 1}),
        (GopherRepetitionFilter, {}),
        (C4QualityFilter, {"filter_no_terminal_punct": False, "min_num_sentences": 2}),
        (C4ParagraphFilter, {}),
        (FineWebQualityFilter, {"line_punct_thr": 0.5, "stop_chars": (".", "!")}),
        (RegexFilter, {"regex_exp": "river stone"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_filter_decides_and_edits_as_datatroves_own_run(peer, arguments):
    given = [text for text in texts() if text.strip()]
    own = peer(**arguments)
    kept = {d.id: d.text for d in own.run(iter([Document(t, str(i)) for i, t in enumerate(given)]))}
    step = DatatroveFilter(f"{FILTERS}:{peer.__name__}", tuple(arguments.items()))
    result = step(batch(given))
    drops = broken(step.rules[0], step, result)
    assert [str(i) for i, drop in enumerate(drops) if not drop] == list(kept)
    assert 0 < len(kept) < len(given)
    final = result.column("text").to_pylist()
    assert all(final[int(name)] == text for name, text in kept.items())
    reasons = [r for r in result.column(step.rules[0].column).to_pylist() if r is not None]
    counted = {
        name.removeprefix("dropped_"): int(stat.total)
        for name, stat in own.stats.stats.items()
        if name.startswith("dropped_")
    }
    assert {r: reasons.count(r) for r in reasons if r != "filtered"} == counted
    assert len(reasons) == len(given) - len(kept)


@pytest.mark.parametrize(
    ("peer", "arguments"),
    [
        (PIIFormatter, {"email_replacement": "MAIL", "ip_replacement": ("IP",)}),
        (FTFYFormatter, {"uncurl_quotes": True}),
        (SymbolLinesFormatter, {"replace_char": "#"}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_formatter_writes_what_datatroves_own_run_writes(peer, arguments):
    given = texts()
    own = peer(**arguments).run(iter([Document(text, "x") for text in given]))
    wanted = [document.text for document in own]
    step = DatatroveFormatter(f"{FORMATTERS}:{peer.__name__}", tuple(arguments.items()))
    result = step(batch(given))
    assert result.column("text").to_pylist() == wanted
    changed = result.column(step.adds.names[1]).to_pylist()
    assert changed == [a != b for a, b in zip(given, wanted, strict=True)]
    assert any(changed)
    assert not all(changed)


def test_replacements_in_turn_start_anew_with_each_document():
    text = "a@example.net b@example.net c@example.net"
    step = DatatroveFormatter(f"{FORMATTERS}:PIIFormatter")
    first, second = step(batch([text, text])).column("text").to_pylist()
    assert first == second == PIIFormatter().format(text)
    stream = PIIFormatter().run(iter([Document(text, "1"), Document(text, "2")]))
    assert len({document.text for document in stream}) == 2  # datatrove's own goes on


def test_metadata_reaches_the_block_and_comes_back():
    step = DatatroveFilter(f"{HERE}:Domain", (("domains", ("bad.example",)),), metadata=("url",))
    urls = ["https://bad.example/x", "https://good.example/x"]
    result = step(batch(["text", "text"], url=pa.array(urls)))
    assert result.column("datatrove_domain_reason").to_pylist() == ["domain", None]
    assert step.reads == ("id", "text", "url")

    step = DatatroveFilter(f"{HERE}:Writes", outputs=(("length", "int64"), ("never", "string")))
    result = step(batch(["abc", None, "abcd"]))
    assert result.column("datatrove_writes_length").to_pylist() == [3, None, 4]
    assert result.column("datatrove_writes_never").null_count == 3


class Writes(BaseFilter):
    name = "writes"

    def filter(self, doc):
        doc.metadata["length"] = len(doc.text)
        return True


class Domain(BaseFilter):
    name = "domain"

    def __init__(self, domains):
        super().__init__()
        self.domains = domains

    def filter(self, doc):
        return (doc.metadata["url"].split("/")[2] not in self.domains), "domain"


class Collects(BaseFilter):
    name = "collects"

    def __init__(self):
        super().__init__()
        self.seen = set()

    def filter(self, doc):
        new = doc.text not in self.seen
        self.seen.add(doc.text)
        return new


class Counts(BaseFormatter):
    name = "counts"

    def __init__(self):
        super().__init__()
        self.number = 0

    def format(self, text):
        self.number += 1
        return f"{self.number} {text}"


class Fails(BaseFilter):
    name = "fails"

    def filter(self, doc):
        return 1 / len(doc.text.split()) > 0


def test_block_that_collects_documents_is_refused():
    with pytest.raises(RuntimeError, match=r"Collects collected something from document 0+ \(seen"):
        DatatroveFilter(f"{HERE}:Collects")(batch(["one", "two"]))


def test_block_that_counts_starts_each_document_with_the_same_number():
    result = DatatroveFormatter(f"{HERE}:Counts")(batch(["a", "b"]))
    assert result.column("text").to_pylist() == ["2 a", "2 b"]


def test_block_that_draws_at_random_is_refused():
    with pytest.raises(ValueError, match=r"SamplerFilter draws at random \(uniform\)"):
        DatatroveFilter(f"{FILTERS}:SamplerFilter", (("seed", 1),))(batch(["one"]))


@pytest.mark.parametrize(
    "block",
    [
        "datatrove.pipeline.dedup:MinhashDedupFilter",
        "datatrove.pipeline.dedup:SentenceDedupFilter",
        "datatrove.pipeline.readers:JsonlReader",
        f"{FORMATTERS}:PIIFormatter",
    ],
)
def test_block_of_another_kind_is_refused(block):
    with pytest.raises(ValueError, match="is no BaseFilter that looks at one document at a time"):
        DatatroveFilter(block)


def test_block_that_fails_names_the_document():
    with pytest.raises(RuntimeError, match=r"Fails failed on document 0+1: ZeroDivisionError"):
        DatatroveFilter(f"{HERE}:Fails")(batch(["fine", " "]))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("GopherQualityFilter", "wanted module:Class"),
        (f"{FILTERS}:NoSuch", "has no class NoSuch"),
        ("datatrove.nowhere:X", "there is no module datatrove.nowhere"),
    ],
)
def test_block_that_does_not_exist_is_named(block, message):
    with pytest.raises(ValueError, match=message):
        DatatroveFilter(block)


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="which JSON cannot hold"):
        DatatroveFilter(f"{FILTERS}:LambdaFilter", (("filter_function", len),))
    with pytest.raises(ValueError, match="RegexFilter cannot be built with"):
        DatatroveFilter(f"{FILTERS}:RegexFilter", (("regexp", "x"),))(batch(["x"]))
    with pytest.raises(ValueError, match="output 'x' has type 'decimal'"):
        DatatroveFilter(f"{FILTERS}:RegexFilter", outputs=(("x", "decimal"),))


def test_accepted_reasons_do_not_drop():
    given = ["lorem ipsum dolor. " * 9, "a { b. c. d. e. f."]
    step = DatatroveFilter(f"{FILTERS}:C4QualityFilter", accepted=("lorem_ipsum",))
    result = step(batch(given))
    assert result.column("datatrove_c4_quality_reason").to_pylist() == [
        "lorem_ipsum",
        "curly_bracket",
    ]
    assert broken(step.rules[0], step, result).tolist() == [False, True]


def test_identity_holds_block_arguments_and_the_librarys_version():
    def identity(**fields):
        step = DatatroveFilter(f"{FILTERS}:RegexFilter", (("regex_exp", "x"),), **fields)
        return Recipe("r", (JsonlReader(),), (step,)).identity()

    found = identity()
    assert found["libraries"]["datatrove"] == "0.10.1"
    assert found["steps"][0]["parameters"]["arguments"] == [["regex_exp", "x"]]
    assert fingerprint(found) == fingerprint(identity())
    assert fingerprint(found) != fingerprint(identity(label="b"))


def test_two_steps_with_one_block_need_labels():
    one = DatatroveFilter(f"{FILTERS}:RegexFilter", (("regex_exp", "x"),))
    two = DatatroveFilter(f"{FILTERS}:RegexFilter", (("regex_exp", "y"),))
    with pytest.raises(ValueError, match="two rules are called 'datatrove_regex'"):
        Recipe("r", (JsonlReader(),), (one, two))
    labelled = DatatroveFilter(f"{FILTERS}:RegexFilter", (("regex_exp", "y"),), label="y")
    Recipe("r", (JsonlReader(),), (one, labelled))
    assert labelled.adds.names == ["text", "datatrove_regex_y_reason"]


def test_missing_library_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "datatrove.data", None)
    with pytest.raises(ImportError, match=r'pip install "gristmill\[datatrove\]"'):
        reload(datatrove_step)


def test_real_licences_are_judged_as_datatrove_judges_them():
    path = Path(__file__).parents[3] / "shared" / "data" / "licences" / "licences.jsonl.gz"
    if not path.is_file():
        pytest.skip("../shared/data/licences is not here")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        given = [json.loads(line)["text"] for line in islice(stream, 0, 400, 16)]
    step = DatatroveFilter(f"{FILTERS}:GopherQualityFilter", (("min_avg_word_length", 4.5),))
    own = GopherQualityFilter(min_avg_word_length=4.5)
    wanted = [own.filter(Document(text, "x")) for text in given]
    reasons = step(batch(given)).column("datatrove_gopher_quality_reason").to_pylist()
    assert reasons == [None if result is True else result[1] for result in wanted]
    assert 0 < reasons.count(None) < len(reasons)
