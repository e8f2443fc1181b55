"""Laws 1 and 9 for every step there is: a new one in pipelines or filters is covered at once."""

import dataclasses
import importlib
import pickle
import pkgutil
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import filters
import pipelines
from pipelines.dedup.vector_walk import walk_vectors
from pipelines.dedup.walk import Candidates, lined_up, verdicts, walk_line
from pipelines.document import CONTENT, CONTENT_TYPE, RESERVED, document_ids, id_words
from pipelines.global_step import (
    VERDICTS,
    DropStep,
    GlobalStep,
    GroupStep,
    Keys,
    PairStep,
    VectorStep,
)
from pipelines.span_step import SPANS, Marks, PieceStep, SpanStep, WindowStep, span_columns
from pipelines.step import Editor, Filter, Step
from tests.laws.step_parameters import CLASSIFIER, INPUTS, PARAMETERS, write_files


def all_steps() -> list[Step]:
    for package in (pipelines, filters):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    found, queue = [], [Step]
    while queue:
        step = queue.pop()
        queue.extend(step.__subclasses__())
        if step.__module__.split(".")[0] in ("pipelines", "filters"):
            found.append(step)
    abstract = (Step, Filter, Editor, GroupStep, PairStep, VectorStep, PieceStep, WindowStep)
    concrete = sorted((s for s in found if s not in abstract), key=lambda s: s.__name__)
    return [s(**given) for s in concrete for given in PARAMETERS.get(s.__name__, ({},))]


STEPS = [step for step in all_steps() if not isinstance(step, GlobalStep)]
GLOBAL_STEPS = [step for step in all_steps() if isinstance(step, GlobalStep)]
DROP_STEPS = [step for step in GLOBAL_STEPS if isinstance(step, DropStep)]
SPAN_STEPS = [step for step in GLOBAL_STEPS if isinstance(step, SpanStep)]


@pytest.fixture(scope="module", autouse=True)
def files():
    write_files()
    yield
    shutil.rmtree(CLASSIFIER.parent)


WORDS = st.sampled_from(
    [
        "the",
        "be",
        "and",
        "#",
        "...",
        "caf\u00e9",
        "\u65e5\u672c\u8a9e",
        "a\u0300",
        "\x07",
        "x1",
        "-",
        "\u2026",
    ]
)
LINES = st.lists(WORDS, max_size=8).map(" ".join)
TEXTS = st.one_of(
    st.none(),
    st.text(max_size=60),
    st.lists(LINES, max_size=12).map("\n".join),
    st.lists(LINES, min_size=1, max_size=2).map(lambda lines: "\r\n\r\n".join(lines * 6)),
)
PAGES = st.one_of(
    st.none(),
    st.binary(max_size=40),
    LINES.map(lambda text: f"<html><body><p>{text}</p></body></html>".encode()),
)


@st.composite
def batches(draw, least=0, most=12):
    n = draw(st.integers(least, most))
    texts = draw(st.lists(TEXTS, min_size=n, max_size=n))
    pages = draw(st.lists(PAGES, min_size=n, max_size=n))
    columns = {field.name: pa.nulls(n, field.type) for field in RESERVED}
    columns["id"] = document_ids("s", ["p"] * n, [str(i) for i in range(n)])
    columns["source"] = pa.array(["s"] * n, pa.string())
    columns["text"] = pa.array(texts, pa.string())
    columns[CONTENT] = pa.array(pages, pa.binary())
    columns[CONTENT_TYPE] = pa.array(
        [None if p is None else "text/html" for p in pages], pa.string()
    )
    for field in INPUTS:
        values = st.none() | st.integers(0, 19)
        if pa.types.is_fixed_size_list(field.type):
            values = st.none() | st.tuples(st.integers(-2, 2), st.none() | st.integers(-2, 2))
        columns[field.name] = pa.array(draw(st.lists(values, min_size=n, max_size=n)), field.type)
    return pa.RecordBatch.from_pydict(columns)


def run(step: Step, batch: pa.RecordBatch) -> pa.RecordBatch:
    replaced = [n for n in step.adds.names if n in batch.schema.names and n not in step.reads]
    return step(batch.drop_columns(replaced))


def test_steps_are_found():
    names = {step.name for step in STEPS + GLOBAL_STEPS}
    wanted = {
        "CleanText",
        "CutContaminated",
        "Decontaminate",
        "ExactDedup",
        "GopherQuality",
        "GopherRepetition",
        "HtmlText",
        "PieceDedup",
        "SubstringDedup",
        "LanguageId",
        "DatatroveFilter",
        "DatatroveFormatter",
        "QualityClassifier",
        "QualityEnsemble",
        "SemanticDedup",
        "SentenceEmbedding",
    }
    assert wanted <= names


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@given(one=batches(), other=batches())
@settings(max_examples=40)
def test_step_of_two_batches_is_step_of_their_sum(step, one, other):
    whole = pa.Table.from_batches([one, other]).combine_chunks().to_batches()
    whole = whole[0] if whole else one
    apart = pa.Table.from_batches([run(step, one), run(step, other)])
    together = pa.Table.from_batches([run(step, whole)])
    assert apart.to_pylist() == together.to_pylist()


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@given(batch=batches())
@settings(max_examples=25)
def test_step_keeps_rows_and_adds_what_it_declares(step, batch):
    result = run(step, batch)
    assert result.num_rows == batch.num_rows
    expected = [n for n in batch.schema.names if n not in step.consumes]
    assert set(result.schema.names) == set(expected) | set(step.adds.names)
    for field in step.adds:
        assert result.schema.field(field.name).type == field.type
    untouched = set(expected) - set(step.adds.names)
    assert all(result.column(name).equals(batch.column(name)) for name in untouched)
    result.validate(full=True)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
@given(batch=batches(4, 9), start=st.integers(0, 3))
@settings(max_examples=25)
def test_step_of_a_slice_is_slice_of_the_step(step, batch, start):
    assert run(step, batch.slice(start)).to_pylist() == run(step, batch).slice(start).to_pylist()


@pytest.mark.parametrize("step", STEPS + GLOBAL_STEPS, ids=lambda step: step.name)
def test_step_pickles_as_its_parameters(step):
    copy = pickle.loads(pickle.dumps(step))
    assert copy == step
    assert dataclasses.is_dataclass(step)
    with pytest.raises(dataclasses.FrozenInstanceError):
        step.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_filter_rules_name_columns_and_parameters(step):
    for rule in getattr(step, "rules", ()):
        assert rule.column in step.adds.names
        assert hasattr(step, rule.threshold)


@pytest.mark.parametrize("step", DROP_STEPS, ids=lambda step: step.name)
@given(batch=batches(0, 14), seed=st.integers(0, 99), cut=st.integers(0, 14))
@settings(max_examples=40)
def test_global_step_does_not_depend_on_order_or_batches(step, batch, seed, cut):
    def keys_of(part):
        group, rank, *_ = step.keys(part)
        return group, rank

    parts = [keys_of(batch.slice(0, cut)), keys_of(batch.slice(cut))]
    group, rank = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    whole_group, whole_rank, *_ = step.keys(batch)
    assert (group == whole_group).all()
    assert (rank == whole_rank).all()
    n = batch.num_rows
    order = np.random.default_rng(seed).permutation(n)
    keys = Keys(group, rank, id_words(batch.column("id")), np.arange(n))
    shuffled = Keys(group[order], rank[order], keys.id[order], keys.row[order])
    decide = decided_by_pairs if isinstance(step, PairStep) else decided_by_groups
    if isinstance(step, VectorStep):
        decide = decided_by_vectors
    assert decide(step, keys, batch) == decide(step, shuffled, batch)


def decided_by_groups(step: GroupStep, keys: Keys, batch: pa.RecordBatch) -> list[dict]:
    verdicts = step.decide(keys, np.zeros(len(keys.row), np.int32))
    assert verdicts.schema == VERDICTS
    return verdicts.sort_by("row").to_pylist()


def decided_by_pairs(step: PairStep, keys: Keys, batch: pa.RecordBatch) -> list[dict]:
    n = len(keys.row)
    _, group = np.unique(keys.group, return_inverse=True)
    member = np.repeat(np.arange(n), keys.group.shape[1])
    place = np.concatenate([keys.rank, keys.id], axis=1)
    one = np.zeros(n, np.int64)
    line = lined_up(Candidates(place, one, keys.row, member, group.reshape(-1)))
    sets = step.sets(batch.take(pa.array(line.row)))
    found = verdicts(line, walk_line(line, *sets, step.comparison()))
    return found.sort_by("row").to_pylist()


def decided_by_vectors(step: VectorStep, keys: Keys, batch: pa.RecordBatch) -> list[tuple]:
    vectors = step.vectors(batch)
    assert (vectors.any(axis=1) == (step.keys(batch)[2] > 0)).all()
    places = np.concatenate([keys.rank, keys.id], axis=1)[:, ::-1]
    order = np.lexsort(places.T)
    order = order[vectors[keys.row[order]].any(axis=1)]
    rows = keys.row[order]
    found = walk_vectors(vectors[rows], step.least())
    heads = np.where(found.anchors < 0, -1, rows[found.anchors])
    return sorted(zip(rows.tolist(), heads.tolist(), found.millionths.tolist(), strict=True))


@pytest.mark.parametrize("step", SPAN_STEPS, ids=lambda step: step.name)
@given(batch=batches(0, 14), seed=st.integers(0, 99), cut=st.integers(0, 14))
@settings(max_examples=40)
def test_span_step_does_not_depend_on_order_or_batches(step, batch, seed, cut):
    parts = [step.marks(batch.slice(0, cut)), step.marks(batch.slice(cut))]
    parts[1] = parts[1]._replace(document=parts[1].document + min(cut, batch.num_rows))
    whole = step.marks(batch)
    for one, other, all_of_it in zip(*parts, whole, strict=True):
        assert np.concatenate([one, other]).tolist() == all_of_it.tolist()
    ranks = [step.rank(batch.slice(0, cut)), step.rank(batch.slice(cut))]
    assert (np.concatenate(ranks) == step.rank(batch)).all()
    sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_numpy()
    assert (whole.place >= 0).all()
    assert (whole.place <= sizes[whole.document, None]).all()
    if isinstance(step, PieceStep):
        order = np.concatenate([step.rank(batch), id_words(batch.column("id"))], axis=1)
        shuffle = np.random.default_rng(seed).permutation(len(whole.document))
        assert decided(step, whole, order) == decided(
            step, Marks(*(column[shuffle] for column in whole)), order
        )


def decided(step: PieceStep, marks: Marks, order: np.ndarray) -> list[dict]:
    row = marks.document.astype(np.int64)
    unit = np.zeros(len(row), np.int32)
    found = step.decide(marks.hash, order[marks.document], marks.place, unit, row)
    assert found.schema == SPANS
    return found.sort_by([("row", "ascending"), ("start", "ascending")]).to_pylist()


@pytest.mark.parametrize("step", SPAN_STEPS, ids=lambda step: step.name)
def test_span_step_adds_the_text_and_the_columns_of_its_name(step):
    assert step.adds == span_columns(step.spans)
