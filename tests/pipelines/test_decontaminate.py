import gzip
import hashlib
import json
import pickle
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.benchmark_sets import Benchmark, read_benchmark
from pipelines.curate import Settings, curate
from pipelines.dataset import Dataset
from pipelines.decontaminate import CutContaminated, Decontaminate
from pipelines.decontaminate_index import NgramSearch, build_index, digit_folds
from pipelines.decontaminate_kernels import SINGLE
from pipelines.dedup.folds import SINGLE as FOLDS_SINGLE
from pipelines.dedup.folds import word_folds
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, Source, fingerprint
from tests.flows.hub_server import Blob, Hub, Repo, git_sha1

ROOT = Path(__file__).parents[2]
QUESTION = (
    "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in "
    "May. How many clips did Natalia sell altogether in April and May?"
)
OTHER = (
    "Julie is reading a 120-page book. Yesterday, she was able to read 12 pages and today, she "
    "read twice as many pages as yesterday. How many pages should she read tomorrow?"
)
PAGE = "The weather was fine on the day before.\nNobody at the station had seen a train.\n"


@pytest.fixture
def benchmark(tmp_path):
    return Benchmark("gsm", write(tmp_path / "gsm.jsonl", QUESTION, OTHER))


CLEAN = ("none", -1)


def write(path, *texts, field="question"):
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts))
    return str(path)


def batch(*texts):
    return pa.record_batch({"text": pa.array(texts, pa.string())})


def judged(step, *texts):
    result = step(batch(*texts)).to_pydict()
    columns = ("contamination_share", "contaminated_by", "contaminated_item")
    return list(zip(*(result[name] for name in columns), strict=True))


SINGLES = "\u65e5\u672c\u8a9e\u0e01\u0e02"


def words_of(text, fold):
    """Returns (word, first byte, end byte) of each word."""
    found, current, start, at = [], "", 0, 0
    for i, char in enumerate(text):
        size = len(char.encode())
        letter = char.isalnum() or unicodedata.category(char).startswith("M")
        digit = fold and char.isdecimal()
        inner = (
            char in ".,"
            and fold
            and text[i - 1 : i].isdecimal()
            and current
            and text[i + 1 : i + 2] in tuple("0123456789")
        )
        if letter and char not in SINGLES:
            start = start if current else at
            if not (digit and current.endswith("\0")):
                current += "\0" if digit else char.lower()
        elif not inner:
            if current:
                found.append((current, start, at))
                current = ""
            if letter:
                found.append((char, at, at + size))
        at += size
    return [*found, (current, start, at)] if current else found


def grams_of(words, n):
    return [tuple(word for word, _, _ in words[i : i + n]) for i in range(len(words) - n + 1)]


class Oracle:
    def __init__(self, items, search, clean=()):
        self.search = search
        n, fold = search.ngram, search.fold_digits
        self.items = [words_of(item, fold) for item in items]
        sets = [set(grams_of(words, n)) for words in self.items]
        quoted = {gram for text in clean for gram in grams_of(words_of(text, fold), n)}
        self.places = []
        for words in self.items:
            first = {}
            for place, gram in enumerate(grams_of(words, n)):
                common = sum(gram in other for other in sets) > search.max_items
                if not common and gram not in quoted and 2 * gram.count("\0") <= n:
                    first.setdefault(gram, place)
            self.places.append(first)
        self.reach = [self.cover(first, first) for first in self.places]
        self.whole = [max(len(reach), search.min_words) for reach in self.reach]

    def cover(self, first, grams):
        n = self.search.ngram
        return {
            word for gram in grams if gram in first for word in range(first[gram], first[gram] + n)
        }

    def share(self, text, item):
        grams = grams_of(words_of(text, self.search.fold_digits), self.search.ngram)
        width = self.search.spread * len(self.items[item])
        windows = (grams[i : i + width] for i in range(len(grams)))
        most = max((len(self.cover(self.places[item], window)) for window in windows), default=0)
        return most / self.whole[item]


ALPHABET = [
    "a",
    "B",
    "\u00e9",
    "7",
    "12",
    "3.5",
    "1,0",
    "\u0663",
    "\u65e5\u672c",
    "\u0e01",
    "e\u0301",
]
SEPARATORS = [" ", "\n", ", ", ".", "-", "**", "\u2014"]
TOKENS = st.tuples(st.sampled_from(ALPHABET), st.sampled_from(SEPARATORS)).map("".join)
TEXTS = st.lists(TOKENS, max_size=30).map("".join)
SEARCHES = st.builds(
    NgramSearch,
    ngram=st.integers(2, 3),
    fold_digits=st.booleans(),
    max_items=st.integers(1, 3),
    min_words=st.integers(2, 5),
    spread=st.integers(1, 2),
)


@st.composite
def cases(draw):
    items = draw(st.lists(TEXTS, min_size=1, max_size=4))
    pieces = st.one_of(TEXTS, st.sampled_from(items), st.sampled_from(items).map(str.upper))
    documents = draw(st.lists(st.lists(pieces, max_size=4).map(" ".join), min_size=1, max_size=4))
    clean = draw(st.lists(TEXTS, max_size=1))
    return items, documents, clean, draw(SEARCHES), draw(st.sampled_from([0.3, 0.5, 2 / 3, 1.0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cases")


@given(case=cases())
@settings(max_examples=80)
def test_steps_do_what_the_definition_says(folder, case):
    items, documents, clean, search, min_share = case
    oracle = Oracle(items, search, clean)
    name = hashlib.sha256(repr(case).encode()).hexdigest()  # what was read is remembered by name
    benchmark = Benchmark("b", write(folder / f"{name}.jsonl", *items))
    known = tuple(Benchmark("c", write(folder / f"{name}.c.jsonl", text)) for text in clean)
    settings = {"min_share": min_share, "clean_texts": known, "search": search}
    step = Decontaminate((benchmark,), **settings)
    attainable = zip(oracle.reach, oracle.whole, strict=True)
    missing = [row for row, (r, whole) in enumerate(attainable) if len(r) / whole < min_share]
    if len(missing) == len(items):
        with pytest.raises(ValueError, match="none of its"):
            step.facts()
    else:
        assert step.facts() == {"items": {"b": len(items)}, "undetectable": {"b": missing}}
    shares = [[oracle.share(text, i) for i in range(len(items))] for text in documents]
    best = [max(row) for row in shares]
    hits = [share >= min_share for share in best]
    assert judged(step, *documents) == [
        (share, *(("b", row.index(share)) if hit else CLEAN))
        for share, hit, row in zip(best, hits, shares, strict=True)
    ]
    cut = CutContaminated((benchmark,), **settings)(batch(*documents)).to_pylist()
    for text, row, expected in zip(documents, cut, shares, strict=True):
        check_cut(text, row, expected, oracle, min_share)


def check_cut(text, row, shares, oracle, min_share):
    spans, data = row["contaminated_spans"], text.encode()
    words = words_of(text, oracle.search.fold_digits)
    starts, ends = {word[1] for word in words}, {word[2] for word in words}
    end, left = 0, b""
    for span in spans:
        assert span["start"] >= end
        assert span["start"] in starts
        assert span["end"] in ends
        piece = data[span["start"] : span["end"]].decode()
        assert oracle.share(piece, span["item"]) >= span["share"] >= min_share
        left += data[end : span["start"]]
        end = span["end"]
    assert row["text"].encode() == left + data[end:]
    assert row["n_contaminated_spans"] == len(spans)
    assert row["contaminated_bytes"] == len(data) - len(row["text"].encode())
    assert bool(spans) == (max(shares) >= min_share)


def test_folds_are_those_of_dedup_with_one_digit():
    assert SINGLE == FOLDS_SINGLE
    folds, digits = word_folds(), digit_folds()
    changed = {chr(i) for i in (folds != digits).nonzero()[0]}
    assert changed == {chr(i) for i in range(0x110000) if chr(i).isdecimal()}


EDITS = {
    "verbatim": QUESTION,
    "upper case, one word a line": QUESTION.upper().replace(" ", "\n"),
    "markdown": QUESTION.replace("48", "**48**").replace("clips", "_clips_"),
    "no punctuation": QUESTION.translate(str.maketrans("", "", ".,?")),
    "numbers": QUESTION.replace("48", "1,250.75"),
    "names": QUESTION.replace("Natalia", "Marek"),
    "words": QUESTION.replace("friends", "neighbours").replace("altogether", "together"),
    "sentences": " ".join(reversed(QUESTION.split(". "))),
}


@pytest.mark.parametrize("edited", EDITS.values(), ids=EDITS)
def test_edited_item_is_found_within_a_page(benchmark, edited):
    text = PAGE * 300 + edited + "\n" + PAGE * 300
    ((share, name, item),) = judged(Decontaminate((benchmark,)), text)
    assert (name, item) == ("gsm", 0)
    assert share >= 0.5
    row = CutContaminated((benchmark,))(batch(text)).to_pylist()[0]
    assert row["n_contaminated_spans"] == 1
    kept = len((PAGE * 600).encode())
    assert kept <= len(row["text"].encode()) < kept + len(edited) / 2
    assert row["text"].startswith(PAGE * 300)
    assert row["text"].endswith(PAGE * 300)


def test_other_numbers_are_another_item_where_digits_are_kept(tmp_path):
    item = "Add 17 to 2,300 and take 5 from 90.5 before you halve 64 or double 31 and halve 12 then"
    known = (Benchmark("b", write(tmp_path / "b.jsonl", item)),)
    text = item.translate(str.maketrans("0123456789", "3141592653"))
    assert judged(Decontaminate(known), text) == [(1.0, "b", 0)]
    kept = Decontaminate(known, search=NgramSearch(fold_digits=False))
    assert judged(kept, text, item) == [(0.0, *CLEAN), (1.0, "b", 0)]


def test_quote_of_a_part_is_no_hit(benchmark):
    quote = "As the saying goes, she sold half as many clips in May. " + PAGE
    ((share, name, item),) = judged(Decontaminate((benchmark,)), quote)
    assert 0 < share < 0.5
    assert (name, item) == CLEAN
    assert CutContaminated((benchmark,))(batch(quote)).column("text")[0].as_py() == quote


def test_table_of_numbers_is_no_item_and_half_of_a_short_item_no_hit(tmp_path):
    table = (
        "Her scores were 5, 8, 80, 6 and 40, 90 and 70, 60, 8, 1, 2, 3. Find the mean score of it."
    )
    short = "A river is to be used for a boat race on Sunday."
    known = (Benchmark("b", write(tmp_path / "b.jsonl", table, short)),)
    numbers = "[(1, 2), (3, 4)] and (5, 6), (7, 8) and (9, 10), (11, 12), (13, 14)"
    quote = "The file is to be used for a boat"
    result = judged(Decontaminate(known), numbers, quote, table, short)
    assert [row[1:] for row in result] == [CLEAN, CLEAN, ("b", 0), ("b", 1)]
    assert (result[0][0], result[3][0]) == (0.0, 12 / 16)


def test_parts_strewn_over_a_page_are_no_hit(benchmark):
    words = QUESTION.split()
    parts = [" ".join(words[i : i + 7]) for i in range(0, len(words) - 6, 7)]
    near, far = ("\n".join([PAGE * pages + part for part in parts]) for pages in (0, 5))
    assert [row[1] for row in judged(Decontaminate((benchmark,)), near, far)] == ["gsm", "none"]


def test_boilerplate_of_a_benchmark_speaks_for_no_item(tmp_path):
    start = "You are given the following problem. Think step by step and answer with one letter. "
    names = ["Marta", "Ole", "Chen", "Ada", "Iris"]
    stories = [
        f"{n} bakes {i} loaves with salt from {n}ville at dawn." for i, n in enumerate(names)
    ]
    path = write(tmp_path / "b.jsonl", *(start + story for story in stories))
    strict = Decontaminate((Benchmark("b", path),), search=NgramSearch(max_items=4, min_words=5))
    loose = Decontaminate((Benchmark("b", path),), search=NgramSearch(max_items=5, min_words=5))
    assert judged(strict, start)[0][1] == "none"
    assert judged(loose, start)[0][1] == "b"
    assert judged(strict, start + stories[3])[0] == (1.0, "b", 3)
    assert judged(strict, stories[3])[0][1:] == ("b", 3)


def test_clean_texts_protect_what_everybody_quotes(benchmark, tmp_path):
    poem = Benchmark("poem", write(tmp_path / "poem.jsonl", OTHER, field="text"), ("text",))
    known = (Benchmark("b", write(tmp_path / "one.jsonl", OTHER)),)
    with pytest.raises(ValueError, match=r"none of its 1 items keeps enough words"):
        Decontaminate(known, clean_texts=(poem,)).facts()
    step = Decontaminate((benchmark,), clean_texts=(poem,))
    assert [row[1] for row in judged(step, OTHER, QUESTION)] == ["none", "gsm"]
    assert step.facts() == {"items": {"gsm": 2}, "undetectable": {"gsm": [1]}}


def test_every_copy_and_every_item_is_cut(benchmark):
    between = " And so it goes on and on, as ever. "
    text = between.join(["\u65e5\u672c", QUESTION, QUESTION, OTHER, QUESTION.upper(), "\u20ac"])
    row = CutContaminated((benchmark,))(batch(text)).to_pylist()[0]
    assert [span["item"] for span in row["contaminated_spans"]] == [0, 0, 1, 0]
    assert {span["share"] for span in row["contaminated_spans"]} == {1.0}
    assert row["text"] == f"\u65e5\u672c{between}?{between}?{between}?{between}?{between}\u20ac"


def test_nulls_and_texts_without_words(benchmark):
    texts = (None, "", " \n", "...", "a")
    empty = (0.0, *CLEAN)
    assert judged(Decontaminate((benchmark,)), *texts) == [(None,) * 3, *[empty] * 4]
    rows = CutContaminated((benchmark,))(batch(*texts)).to_pylist()
    assert list(rows[0].values()) == [None] * 4
    assert [row["text"] for row in rows] == list(texts)
    assert all(list(row.values())[1:] == [[], 0, 0] for row in rows[1:])
    none = CutContaminated((benchmark,))(batch())
    assert none.num_rows == 0


def test_batch_without_a_hit_keeps_its_buffers(benchmark):
    texts = batch(PAGE, "clean")
    result = CutContaminated((benchmark,))(texts)
    assert result.column("text").buffers()[2].address == texts.column("text").buffers()[2].address


def test_page_of_nothing_but_one_matching_phrase_ends(tmp_path):
    path = write(tmp_path / "b.jsonl", "a b " * 200 + QUESTION)
    step = Decontaminate((Benchmark("b", path),))
    assert judged(step, "a b " * 200_000)[0][0] < 0.5


def test_files_of_all_kinds_hold_the_same_items(tmp_path):
    lines = "".join(json.dumps({"q": f"{QUESTION} {i}"}) + "\n" for i in range(5)).encode()
    files = {"plain.jsonl": lines, "g.jsonl.gz": gzip.compress(lines)}
    files["z.ndjson.zst"] = zstandard.compress(lines + b"\n")
    table = pa.table({"q": [f"{QUESTION} {i}" for i in range(5)], "n": range(5)})
    pq.write_table(table, tmp_path / "p.parquet")
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "p.parquet"):
        read = read_benchmark(Benchmark("b", str(tmp_path / name), ("q",)))
        assert read.texts == tuple(f"{QUESTION} {i}" for i in range(5))
        assert read.sha256 == (hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(),)
    (tmp_path / "README.md").write_text("no items")
    whole = read_benchmark(Benchmark("b", str(tmp_path), ("q",)))
    assert (len(whole.texts), len(whole.sha256)) == (20, 4)
    some = read_benchmark(Benchmark("b", str(tmp_path), ("q",), r"[gz]\..*"))
    assert len(some.texts) == 10


def test_fields_and_lists_are_joined(tmp_path):
    path = tmp_path / "b.jsonl"
    path.write_text('{"q": "Which?", "c": ["one", "two"], "n": null}\n')
    assert read_benchmark(Benchmark("b", str(path), ("q", "c", "n"))).texts == ("Which?\none\ntwo",)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("b.jsonl", b"", "Benchmark b: .* has no rows; give the file"),
        ("b.jsonl", b'{"q": "x"}\n{"q"\n', r"Benchmark b: b.jsonl, line 2 is not JSON"),
        ("b.jsonl", b'{"a": "x"}\n', r"row 0 has no field 'q'; fields here: a\. Name the fields"),
        ("b.jsonl", b'{"q": 5}\n', "row 0 has 5 in 'q'; wanted text or a list of texts"),
        ("b.jsonl", b"[1]\n", r"row 0 is \[1\], wanted an object"),
        ("b.jsonl", b'{"q": "short"}\n', "none of its 1 items keeps enough words"),
        (
            "b.jsonl.gz",
            gzip.compress(b'{"q": "x"}\n', mtime=0)[:-9],
            "damaged: truncated.*fetch it again",
        ),
        ("b.parquet", b"PAR1", "no Parquet file or damaged"),
        ("b.txt", b"question", "none of the 1 files at .* is JSON Lines or Parquet"),
    ],
)
def test_bad_files_say_what_is_wrong(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    step = Decontaminate((Benchmark("b", str(tmp_path / name), ("q",)),))
    with pytest.raises(ValueError, match=words):
        step.facts()


def test_missing_file_and_missing_column_say_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match=r"Benchmark b: .*nothing exists at '.*gone.jsonl'"):
        Decontaminate((Benchmark("b", str(tmp_path / "gone.jsonl")),))(batch("a"))
    pq.write_table(pa.table({"a": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match="row 0 has no field 'question'"):
        read_benchmark(Benchmark("b", str(tmp_path / "b.parquet")))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda b: Decontaminate(()), r"Decontaminate: benchmarks are called \[\]"),
        (lambda b: CutContaminated((b, b)), "wanted one or more, each with a name of its own"),
        (lambda b: Decontaminate((b,), min_share=0.0), "min_share is 0.0, wanted more than 0"),
        (lambda b: Decontaminate((Benchmark("none", "b"),)), "other than 'none'"),
        (lambda b: NgramSearch(ngram=1), "NgramSearch: ngram is 1, wanted 2 or more"),
        (lambda b: Benchmark("b", "b", ()), r"Benchmark b: fields is \(\); wanted the names"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(Benchmark("b", "b.jsonl"))


def recipe(*steps):
    return Recipe("r", (JsonlReader(),), steps)


def test_fingerprint_covers_the_files_and_not_where_they_are(tmp_path):
    first, second, third = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "three.jsonl"))
    write(first, QUESTION, OTHER)
    write(second, QUESTION, OTHER)
    write(third, QUESTION, OTHER + " Why?")
    marks = [
        fingerprint(recipe(Decontaminate((Benchmark("b", str(path)),))).identity())
        for path in (first, second, third)
    ]
    assert marks[0] == marks[1] != marks[2]
    one = Decontaminate((Benchmark("b", str(first)),))
    described = recipe(one).identity()["steps"][0]
    digest = hashlib.sha256(first.read_bytes()).hexdigest()
    assert described["files"] == {"benchmarks b 1/1": digest}
    assert described["parameters"]["benchmarks"] == [{"name": "b", "fields": ["question"]}]
    assert described["parameters"]["clean_texts"] == []
    assert described["facts"] == {"items": {"b": 2}, "undetectable": {"b": []}}
    assert str(tmp_path) not in json.dumps(described)
    assert pickle.loads(pickle.dumps(one)) == one


def test_changed_file_is_read_again_when_a_run_begins(benchmark):
    step = Decontaminate((benchmark,))
    before = recipe(step).identity()
    assert judged(step, OTHER)[0][1] == "gsm"
    write(Path(benchmark.root), QUESTION)
    assert recipe(step).identity() != before
    assert judged(step, OTHER)[0] == (0.0, *CLEAN)


def test_curated_corpus_counts_hits_by_benchmark(tmp_path, capsys):
    rng = random.Random(0)
    words = PAGE.split()
    path = tmp_path / "texts.jsonl"
    planted = {5: QUESTION, 17: OTHER, 33: QUESTION.upper(), 40: "Think of sand."}
    with path.open("w") as stream:
        for row in range(60):
            text = " ".join([*rng.choices(words, k=40), planted.get(row, ""), *words])
            stream.write(json.dumps({"text": text}) + "\n")
    sets = (
        Benchmark("gsm", write(tmp_path / "gsm.jsonl", QUESTION, "Too short.")),
        Benchmark("julie", write(tmp_path / "julie.jsonl", OTHER, field="text"), ("text",)),
    )
    source = [Source("texts", str(path))]
    steps = (Decontaminate(sets),)
    manifest = curate(recipe(*steps), source, tmp_path / "out", Settings(workers=2))
    dropped = {rule["name"]: rule["dropped"] for rule in manifest["rules"]}
    assert dropped == {"no_text": 0, "contaminated": 3}
    facts = manifest["recipe"]["steps"][0]["facts"]
    assert facts == {"items": {"gsm": 2, "julie": 1}, "undetectable": {"gsm": [1], "julie": []}}
    assert "1 of 2 items of gsm keep too few n-grams" in capsys.readouterr().err
    ledger = pa.Table.from_batches(
        Dataset(tmp_path / "out").batches("ledger", ["dropped_by", "contaminated_by"])
    )
    hits = ledger.filter(pc.is_valid(ledger["dropped_by"]))["contaminated_by"].value_counts()
    assert {row["values"]: row["counts"] for row in hits.to_pylist()} == {"gsm": 2, "julie": 1}
    cut = curate(recipe(CutContaminated(sets), *steps), source, tmp_path / "cut", Settings())
    assert cut["kept"] == 60
    assert cut["warnings"] == [word for word in cut["warnings"] if "contaminated" in word] != []
    rows = pa.Table.from_batches(
        Dataset(tmp_path / "cut").batches("ledger", ["contaminated_spans", "n_contaminated_spans"])
    )
    assert pc.sum(rows["n_contaminated_spans"]).as_py() == 3
    spans = [span for row in rows["contaminated_spans"].to_pylist() for span in row]
    assert sorted((span["benchmark"], span["item"]) for span in spans) == [
        ("gsm", 0),
        ("gsm", 0),
        ("julie", 0),
    ]


HUB_CLIENT = """
import json, sys
from pipelines.benchmark_sets import Benchmark, read_benchmark
read = read_benchmark(Benchmark("b", "tester/gsm", ("question",), "main/test.*"))
json.dump(read, sys.stdout)
"""


def test_benchmark_on_the_hub_is_read_by_its_name(tmp_path):
    pq.write_table(pa.table({"question": [QUESTION, OTHER]}), tmp_path / "test.parquet")
    data = (tmp_path / "test.parquet").read_bytes()
    oid = hashlib.sha256(data).hexdigest()
    with Hub() as hub:
        repo = hub.repos["tester/gsm"] = Repo(private=False)
        hub.storage[oid] = data
        card = b"no items here"
        files = {"README.md": Blob(git_sha1(card), card, False)}
        files |= {f"main/{part}-0.parquet": Blob(oid, data, True) for part in ("test", "train")}
        repo.commit("main", files, "items")
        environment = hub.environment(tmp_path / "home") | {"PATH": "", "HOME": str(tmp_path)}
        done = subprocess.run(
            [sys.executable, "-c", HUB_CLIENT],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[QUESTION, OTHER], [oid]]


def test_index_is_built_once_in_a_process(benchmark):
    search = NgramSearch(min_words=13)
    first = build_index((benchmark,), (), search)
    assert build_index((Benchmark(*benchmark.__dict__.values()),), (), search) is first
