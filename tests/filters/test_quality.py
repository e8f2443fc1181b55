import json
import pickle
import random
import shutil
from pathlib import Path

import fasttext
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from filters.fasttext_training import FastTextSettings, train_model
from filters.labelled import Columns
from filters.path_labels import PathLabels
from filters.quality import LEVELS, QualityClassifier, QualityEnsemble
from filters.quality_metrics import (
    calibrated,
    classification_metrics,
    platt,
    reliability,
    weighted_edges,
)
from filters.quality_model import load_quality, newlines_replaced
from filters.quality_training import evaluate_classifier, train_classifier
from flows.recipes.package_quality import PACKAGE_LABELS
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, fingerprint
from pipelines.step import broken

SMALL = FastTextSettings(dimensions=6, buckets=500, min_count=1, word_ngrams=3)
PLAIN = [
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "zeta",
    "eta",
    "theta",
    "iota",
    "kappa",
    "café",
    "日本",
]
GOOD, BAD = ["explains", "because", "therefore", "reason"], ["buy", "cheap", "click", "winner"]


def documents(n: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        good = rng.random() < 0.5
        words = [
            rng.choice(PLAIN if rng.random() < 0.85 else GOOD if good else BAD)
            for _ in range(rng.randint(12, 40))
        ]
        text = " ".join(words[:8]) + "\n" + " ".join(words[8:])
        label = "good" if good else "bad"
        rows.append({"id": f"d{number}", "text": text, "label": label, "site": f"s{number % 90}"})
    return rows


def write_jsonl(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("quality")
    labelled = write_jsonl(folder / "in.jsonl", documents(500, seed=1))
    columns = Columns(positive=("good",), group="site")
    train_classifier(str(folder / "c"), [labelled], columns=columns, settings=SMALL, seed=3)
    return folder / "c"


@pytest.fixture(scope="module")
def peer(trained):
    fasttext.FastText.eprint = lambda *_: None
    return fasttext.load_model(str(trained / "model.bin"))


def peer_score(peer, line: str) -> float | None:
    found = {label: p for p, label in peer.f.predict(line + "\n", 2, 0.0, "strict")}
    # fastText adds 1e-5 inside its logarithm and reports its exponential
    return found["__label__hq"] - 1e-5 if found else None


def scores(trained, texts) -> list[float | None]:
    batch = pa.record_batch({"text": pa.array(texts, pa.string())})
    return QualityClassifier(str(trained))(batch).column("quality_score").to_pylist()


def test_scores_of_unseen_documents_are_fasttexts(trained, peer):
    texts = [row["text"] for row in documents(300, seed=9)]
    wanted = [peer_score(peer, text.replace("\n", " ")) for text in texts]
    assert scores(trained, texts) == pytest.approx(wanted, abs=3e-6)
    assert np.std(wanted) > 0.2


WORDS = st.sampled_from(
    [*PLAIN, *GOOD, *BAD, "__label__hq", "__label__x", "</s>", "\0", "\t", "\x0b", "\xa0", "new"]
)


@given(st.lists(st.lists(WORDS | st.text(max_size=6), min_size=1).map(" ".join), max_size=4))
@settings(max_examples=150)
def test_scores_of_odd_texts_are_fasttexts(trained, peer, texts):
    texts = [text for text in texts if text.replace("\0", " ").strip(" \t\n\r\x0b\x0c")]
    wanted = [peer_score(peer, text.replace("\n", " ")) for text in texts]
    assert scores(trained, texts) == pytest.approx(wanted, abs=3e-6)


def test_scores_of_a_quantised_pruned_model_are_fasttexts(tmp_path):
    rng = random.Random(2)
    words = [f"w{i}" for i in range(600)]
    lines = [f"__label__{rng.choice(['hq', 'lq'])} " + " ".join(rng.choices(words, k=20))]
    lines += [f"__label__{'hq' if w[-1] in '02468' else 'lq'} {w} {w}x" for w in words * 2]
    (tmp_path / "lines").write_text("\n".join(lines) + "\n")
    train_model(tmp_path / "lines", tmp_path / "model.bin", SMALL)
    peer = fasttext.load_model(str(tmp_path / "model.bin"))
    peer.quantize(cutoff=400)
    peer.save_model(str(tmp_path / "model.bin"))
    from filters.fasttext_model import load_word_classifier
    from filters.fasttext_word_kernels import label_probabilities
    from pipelines.text_buffers import string_buffers

    texts = [" ".join(rng.choices(words, k=12)) for _ in range(50)]
    read = load_word_classifier(str(tmp_path / "model.bin"))
    offsets, data, valid = string_buffers(pa.array(texts))
    label = read.labels.index("hq")
    ours = label_probabilities(read.model, data, offsets, valid, label)
    assert ours.tolist() == pytest.approx([peer_score(peer, text) for text in texts], abs=3e-6)
    assert (read.model.bucket_rows < 0).any()


def test_two_trainings_give_the_same_bytes_and_another_seed_others(trained, tmp_path):
    labelled = write_jsonl(tmp_path / "in.jsonl", documents(500, seed=1)[::-1])
    arguments = {"columns": Columns(positive=("good",), group="site"), "settings": SMALL}
    again = train_classifier(str(tmp_path / "a"), [labelled], seed=3, **arguments)
    first = json.loads((trained / "manifest.json").read_text())
    assert again == first
    other = train_classifier(str(tmp_path / "b"), [labelled], seed=4, **arguments)
    assert other["files"]["model.bin"] != first["files"]["model.bin"]
    before = (tmp_path / "b" / "model.bin").stat().st_mtime_ns
    assert train_classifier(str(tmp_path / "b"), [labelled], seed=4, **arguments) == other
    assert (tmp_path / "b" / "model.bin").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="another request made: seed is 4 there and 5 here"):
        train_classifier(str(tmp_path / "b"), [labelled], seed=5, **arguments)


def test_classifier_tells_unseen_documents_apart_and_its_metrics_say_so(trained, tmp_path):
    rows = documents(400, seed=77)
    path = write_jsonl(tmp_path / "new.jsonl", rows)
    found = evaluate_classifier(str(trained), [path], columns=Columns(positive=("good",)))
    assert found["metrics"]["roc_auc"] > 0.9
    values = scores(trained, [row["text"] for row in rows])
    good = np.array([row["label"] == "good" for row in rows])
    called = np.array(values) >= 0.5
    assert found["metrics"]["at_half"]["precision"] == pytest.approx(good[called].mean(), abs=1e-6)
    assert found["metrics"]["at_half"]["recall"] == pytest.approx(called[good].mean(), abs=1e-6)
    assert sum(map(sum, found["bins"].values())) == len(rows)
    top = found["examples"]["highest"][0]
    assert top["score"] == pytest.approx(max(values), abs=1e-6)
    json.dumps(found)


def test_no_group_is_on_both_sides_and_repeated_and_contradictory_texts_are_out(tmp_path):
    rows = documents(300, seed=4)
    rows += [{**rows[0], "id": "again"}, {**rows[1], "id": "c", "label": "maybe"}]
    rows += [{**rows[2], "id": "n", "text": None}, {**rows[3], "id": "m", "label": None}]
    opposite = "bad" if rows[1]["label"] == "good" else "good"
    rows[-3]["label"] = opposite
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    columns = Columns(positive=("good",), group="site")
    made = train_classifier(str(tmp_path / "c"), [path], columns=columns, settings=SMALL)
    counts = made["counts"]
    assert counts["read"] == 304
    assert (counts["without_text_or_label"], counts["repeated"]) == (2, 1)
    assert counts["contradictory"] == 2
    assert counts["train"] + counts["calibrate"] + counts["test"] == 299
    from filters.labelled import roles

    sites = pa.chunked_array([[f"s{i}" for i in range(90)] * 2])
    role = roles(sites, 0, 0.2)
    assert (role[:90] == role[90:]).all()
    assert set(role) == {0, 1, 2}


def test_positive_and_negative_parquet_files_and_a_reference_train_alike(tmp_path):
    rows = documents(400, seed=6)
    for name in ("good", "bad"):
        texts = [row["text"] for row in rows if row["label"] == name]
        pq.write_table(pa.table({"text": texts}), tmp_path / f"{name}.parquet")
    write_jsonl(tmp_path / "reference.jsonl", documents(200, seed=8))
    made = train_classifier(
        str(tmp_path / "c"),
        positive=[str(tmp_path / "good.parquet")],
        negative=[str(tmp_path / "bad.parquet")],
        reference=[str(tmp_path / "reference.jsonl")],
        settings=SMALL,
        newline="lines",
    )
    assert made["metrics"]["roc_auc"] > 0.9
    texts = [row["text"] for row in documents(200, seed=8)]
    step = QualityClassifier(str(tmp_path / "c"))
    result = step(pa.record_batch({"text": texts}))
    bins = np.array(result.column("quality_bin").to_pylist())
    sizes = np.array([len(text.encode()) for text in texts])
    shares = np.bincount(bins, sizes, 20) / sizes.sum()
    assert shares == pytest.approx(np.full(20, 0.05), abs=0.02)


def test_settings_that_cannot_work_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "in.jsonl", documents(30, seed=1))
    with pytest.raises(ValueError, match="nothing to train on"):
        train_classifier(str(tmp_path / "c"), positive=[path])
    with pytest.raises(ValueError, match=r"0 positive documents to train on, wanted 20"):
        train_classifier(str(tmp_path / "c"), [path], columns=Columns(positive=("gud",)))
    with pytest.raises(ValueError, match="newline is 'tab'; wanted one of: space"):
        train_classifier(str(tmp_path / "c"), [path], newline="tab")
    with pytest.raises(ValueError, match="has no column 'content'; it has: id, text, label"):
        train_classifier(str(tmp_path / "c"), [path], columns=Columns(text="content"))
    with pytest.raises(ValueError, match="dimensions is 0, wanted 1 or more"):
        FastTextSettings(dimensions=0)
    assert not (tmp_path / "c").exists()


def test_newline_modes_differ_as_they_say():
    texts = pa.array([" one\ntwo \x85three\r\nfour\n", None])
    assert newlines_replaced(texts, "nothing").to_pylist() == [" onetwo \x85three\rfour", None]
    assert newlines_replaced(texts, "lines").to_pylist() == ["one two  three four", None]
    assert newlines_replaced(texts, "space") is texts


def test_area_and_precision_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    values = np.round(rng.random(120), 1)
    truth = rng.random(120) < values
    found = classification_metrics(values, truth)
    pairs = [(a > b) + (a == b) / 2 for a in values[truth] for b in values[~truth]]
    assert found["roc_auc"] == pytest.approx(np.mean(pairs), abs=1e-6)
    levels = np.unique(values)[::-1]
    recalls = [truth[values >= level].sum() / truth.sum() for level in levels]
    precisions = [truth[values >= level].mean() for level in levels]
    area = sum(np.diff([0, *recalls]) * precisions)
    assert found["average_precision"] == pytest.approx(area, abs=1e-6)
    f1 = [2 * p * r / (p + r) for p, r in zip(precisions, recalls, strict=True) if p + r]
    assert found["at_best_f1"]["f1"] == pytest.approx(max(f1), abs=1e-6)
    with pytest.raises(ValueError, match="120 positive and 0 negative"):
        classification_metrics(values, np.ones(120, bool))


def test_platt_mends_overconfident_scores():
    rng = np.random.default_rng(1)
    truth_logit = rng.normal(0, 1.5, 4000)
    truth = rng.random(4000) < 1 / (1 + np.exp(-truth_logit))
    overconfident = 1 / (1 + np.exp(-3 * truth_logit - 1))
    a, b = platt(overconfident, truth)
    assert a == pytest.approx(1 / 3, abs=0.04)
    before = reliability(overconfident, truth)
    after = reliability(calibrated(overconfident, (a, b)), truth)
    assert after["expected_error"] < 0.03 < before["expected_error"]
    assert after["log_loss"] < before["log_loss"]
    assert sum(row["documents"] for row in before["table"]) == 4000


@given(
    st.lists(st.tuples(st.integers(0, 99), st.integers(1, 50)), min_size=1, max_size=60),
)
def test_edges_are_numpys_weighted_percentiles(rows):
    values, weights = (np.array(column) for column in zip(*rows, strict=True))
    percentiles = np.arange(5, 100, 5)
    wanted = np.percentile(values, percentiles, weights=weights, method="inverted_cdf")
    cumulative = np.cumsum(weights[np.argsort(values, kind="stable")])
    exact = np.isin(20 * cumulative, cumulative[-1] * np.arange(1, 20)).any()
    if not exact:  # on a border numpy's rounding decides, ours is in whole bytes
        assert weighted_edges(values, weights) == wanted.tolist()
    edges = weighted_edges(values, weights)
    assert edges == sorted(edges)
    for edge, share in zip(edges, range(1, 20), strict=True):
        assert 20 * weights[values <= edge].sum() >= share * weights.sum()
        assert 20 * weights[values < edge].sum() < share * weights.sum()


def test_null_and_wordless_texts_have_no_quality_and_break_no_rule(trained):
    step = QualityClassifier(str(trained), min_bin=19)
    texts = [None, "", " \n\t", "buy cheap click"]
    result = step(pa.record_batch({"text": pa.array(texts, pa.string())}))
    for name in step.adds.names:
        assert [value is None for value in result.column(name).to_pylist()] == [True] * 3 + [False]
    assert broken(step.rules[0], step, result).tolist() == [False] * 3 + [True]


def test_bins_levels_and_scores_agree(trained):
    texts = [row["text"] for row in documents(300, seed=21)]
    result = QualityClassifier(str(trained))(pa.record_batch({"text": texts}))
    edges = load_quality(str(trained / "classifier.json")).edges
    values = result.column("quality_score").to_numpy()
    bins = result.column("quality_bin").to_pylist()
    assert bins == [int((edges <= value).sum()) for value in values]
    names = dict(LEVELS)
    for place, level in zip(bins, result.column("quality_level").to_pylist(), strict=True):
        above = [border for border in names.values() if border > names[level]]
        assert names[level] <= place < min(above, default=20)
    assert len(set(bins)) > 12


def test_ensemble_takes_the_highest_bin():
    step = QualityEnsemble(("edu", "wiki"), min_bin=12)
    columns = {
        "edu_bin": pa.array([3, None, None, 19], pa.int8()),
        "wiki_bin": pa.array([12, 11, None, 0], pa.int8()),
    }
    result = step(pa.record_batch(columns))
    assert result.column("quality_bin").to_pylist() == [12, 11, None, 19]
    assert result.column("quality_level").to_pylist() == ["Medium", "Medium-Low", None, "High"]
    assert broken(step.rules[0], step, result).tolist() == [False, True, False, False]
    with pytest.raises(ValueError, match="wanted the column names of two or more"):
        QualityEnsemble(("edu",))


def test_identity_is_the_models_content_and_not_its_place(trained, tmp_path):
    def identity(**fields):
        return Recipe("r", (JsonlReader(),), (QualityClassifier(**fields),)).identity()

    shutil.copytree(trained, tmp_path / "copy")
    here, there = identity(model=str(trained)), identity(model=str(tmp_path / "copy"))
    assert fingerprint(here) == fingerprint(there)
    card = tmp_path / "copy" / "classifier.json"
    card.write_text(card.read_text().replace('"space"', '"nothing"'))
    assert fingerprint(identity(model=str(tmp_path / "copy"))) != fingerprint(here)
    assert fingerprint(identity(model=str(trained), min_bin=8)) != fingerprint(here)
    step = QualityClassifier(str(trained), column="edu")
    copy = pickle.loads(pickle.dumps(step))
    assert (copy, copy.adds, copy.rules) == (step, step.adds, step.rules)


def test_classifier_that_is_missing_broken_or_another_is_named(trained, tmp_path):
    batch = pa.record_batch({"text": ["x"]})
    with pytest.raises(ValueError, match="there is no quality classifier at"):
        QualityClassifier(str(tmp_path / "none"))(batch)
    shutil.copytree(trained, tmp_path / "other")
    with (tmp_path / "other" / "model.bin").open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(ValueError, match=r"model\.bin holds other bytes than the model that"):
        QualityClassifier(str(tmp_path / "other"))(batch)
    with pytest.raises(ValueError, match="min_bin is 20, wanted 0 to 19"):
        QualityClassifier(str(trained), min_bin=20)
    with pytest.raises(ValueError, match="wanted descending and the last one 0"):
        QualityClassifier(str(trained), levels=(("Low", 0), ("High", 19)))


@pytest.mark.parametrize(
    ("path", "label", "group"),
    [
        ("torch/nn/linear.py", "library", "torch"),
        ("torch-2.13.0+cpu.dist-info/METADATA", "documentation", "torch"),
        ("torch-2.13.0+cpu.dist-info/licenses/LICENSE", "licence", "torch"),
        ("torch/include/ATen/ops/abs_ops.h", "generated", "torch"),
        ("pandas/tests/test_base.py", "test", "pandas"),
        ("numpy/testing/overrides.py", "test", "numpy"),
        ("six.py", "library", "six.py"),
        ("numpy/__init__.pyi", "stub", "numpy"),
        ("numpy/__init__.py", None, "numpy"),
        ("prefect/client/AGENTS.md", "documentation", "prefect"),
    ],
)
def test_labels_of_packages_follow_paths(path, label, group):
    labels, groups = PACKAGE_LABELS.of(pa.array([path]))
    assert (labels[0].as_py(), groups[0].as_py()) == (label, group)


def test_path_labels_must_know_both_sides():
    with pytest.raises(ValueError, match="wanted some, but not all, of: a, b"):
        PathLabels((("a", "x"), ("b", "y")), positive=("a", "b"))
