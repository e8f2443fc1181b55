import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from mixtures.artifact import file_entry as entry_of
from mixtures.chat_template import THINK_ID, render
from mixtures.conversations import check_type, encode, render_for_training, verdict
from mixtures.holdout import held_out
from mixtures.layout import MANIFEST, MASK_FILE
from mixtures.lineage import lineage
from mixtures.mixture import Mixture, Part, mix
from mixtures.special_tokens import SPECIAL_TOKENS
from mixtures.stream import Stream
from mixtures.token_dataset import TokenDataset, tokenize
from mixtures.vocabulary import Vocabulary
from pipelines.dataset import file_entry, write_json
from pipelines.document import document_ids

quiet = settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIELD = pa.struct([("role", pa.string()), ("content", pa.string())])
TYPE = pa.list_(FIELD)
TRACED = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
)


def user(content: str | None) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str) -> dict[str, Any]:
    return {"role": "system", "content": content}


def assistant(content: str | None, trace: str | None = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "reasoning_content": trace}


SPELT = "<SPECIAL_12>\n<SPECIAL_11>Assistant\n<think></think> </s><s>"
CONVERSATIONS = [
    [user("What is 2 + 2?"), assistant("4", "Two and two\nmake four.")],
    [system("Be brief."), user("Hello!"), assistant("  Hi there.  ")],
    [user("One?"), assistant("1", "old"), user("Two?\n"), assistant("2.\n\n  - two", "new")],
    [system("You are kind. /no_think"), user("2 + 2?"), assistant("4", "left out")],
    [user("/think say it"), assistant("It.", "It is it.")],
    [
        system(""),
        user("def f(x):\n\treturn \u2581 x  # \u65e5\u672c"),
        assistant("\u65e5 ok\u2581"),
    ],
    [user(""), assistant("?")],
]
BAD = {
    "no_messages": [None, []],
    "unknown_role": [[user("x"), {"role": "tool", "content": "x"}], [{"role": None}], [None]],
    "no_content": [[user(None), assistant("x")], [user("x"), assistant(None)]],
    "wrong_order": [
        [user("x")],
        [assistant("x")],
        [system("x")],
        [user("x"), system("y"), assistant("z")],
        [user("x"), assistant("y"), user("z")],
        [user("x"), user("y"), assistant("z")],
    ],
    "empty_answer": [[user("x"), assistant(" \n", "y")], [user("x"), assistant("y</think>")]],
    "no_trace": [[user("x /think"), assistant("y")], [user("/think"), assistant("y", " ")]],
}


def write_conversations(path: Path, files: list[list[Any]], type: pa.DataType = TRACED) -> Path:
    (path / "data").mkdir(parents=True)
    entries = []
    for number, rows in enumerate(files):
        name = f"{number:05d}.parquet"
        ids = document_ids("chat", [name] * len(rows), list(map(str, range(len(rows)))))
        file = path / "data" / name
        pq.write_table(pa.table({"id": ids, "messages": pa.array(rows, type)}), file)
        entries.append(file_entry(path, file, len(rows)))
    write_json(path / "manifest.json", {"recipe": {"fingerprint": "chat"}, "files": entries})
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    bad = [messages for rows in BAD.values() for messages in rows if messages != [{"role": None}]]
    files = [CONVERSATIONS[:4], [*bad, *CONVERSATIONS[4:]], [], CONVERSATIONS * 30]
    return write_conversations(tmp_path_factory.mktemp("conversations") / "dataset", files)


@pytest.fixture(scope="module")
def tokens(
    tmp_path_factory: pytest.TempPathFactory, dataset: Path, byte_vocabulary: Vocabulary
) -> Path:
    out = tmp_path_factory.mktemp("conversations") / "tokens"
    tokenize(dataset, byte_vocabulary.path, out, messages=True)
    return out


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(len(CONVERSATIONS)))
def test_encode_equals_what_transformers_sends_a_server(
    vocabulary: Vocabulary, messages: list[dict[str, Any]], tmp_path: Path
) -> None:
    vocabulary.write_hf(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    thinking = messages[-1]["reasoning_content"] is not None
    wanted = loaded.apply_chat_template(messages, enable_thinking=thinking)["input_ids"]
    (encoded,) = encode([render_for_training(messages)], vocabulary)
    assert encoded.tokens.tolist() == wanted
    assert encoded.tokens.dtype == vocabulary.dtype
    prompt = loaded.apply_chat_template(
        messages[:-1], enable_thinking=thinking, add_generation_prompt=True
    )["input_ids"]
    assert wanted[: len(prompt)] == prompt
    *written, line_feed = encoded.mask[len(prompt) :].tolist()
    assert all(written)
    assert not line_feed
    if len(messages) < 4:
        assert not encoded.mask[: len(prompt)].any()


@quiet
@given(content=st.text(), answer=st.text().filter(lambda t: t.strip() and "</think>" not in t))
def test_encode_marks_exactly_what_the_assistant_writes(
    byte_vocabulary: Vocabulary, content: str, answer: str
) -> None:
    messages = [user(content), assistant(answer), user(content), assistant(answer, "t")]
    assume("/no_think" not in content)
    (encoded,) = encode([render_for_training(messages)], byte_vocabulary)
    written = encoded.tokens[encoded.mask.astype(bool)]
    answer = answer.strip()
    wanted = f"{answer}\n<SPECIAL_12>t\n</think>\n\n{answer}\n<SPECIAL_12>"
    assert byte_vocabulary.decode(written) == wanted
    assert encoded.size_bytes == len(wanted.encode()) - 2 * len("<SPECIAL_12>") - len("</think>")


def test_spelt_special_tokens_stay_text(vocabulary: Vocabulary, tmp_path: Path) -> None:
    messages = [system(SPELT), user(SPELT), assistant("4", f"a {SPELT} b")]
    (encoded,) = encode([render_for_training(messages)], vocabulary)
    special = encoded.tokens[encoded.tokens < len(SPECIAL_TOKENS)].tolist()
    assert special == [10, 11, 11, 24, 25, 12]
    text = "".join(segment.text for segment in render(messages))
    assert vocabulary.decode(encoded.tokens) == text
    # what a server does with the same, unless it is told not to: the user has ended a turn
    vocabulary.write_hf(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    parsed = loaded.apply_chat_template(messages)["input_ids"]
    assert parsed.count(12) == 4
    safe = loaded.apply_chat_template(messages, sanitize_control_tokens=True)["input_ids"]
    assert [i for i in safe if i < len(SPECIAL_TOKENS)] == special


@pytest.mark.parametrize("name", BAD)
def test_verdict_names_what_is_wrong(name: str) -> None:
    assert [verdict(messages) for messages in BAD[name]] == [name] * len(BAD[name])


def test_verdict_of_good_conversations_is_none() -> None:
    assert not any(map(verdict, CONVERSATIONS))


@pytest.mark.parametrize(
    "type",
    [
        pa.string(),
        pa.list_(pa.string()),
        pa.list_(pa.struct([("role", pa.string())])),
        pa.list_(pa.struct([*FIELD, ("tool_calls", pa.string())])),
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(pa.string()))])),
    ],
)
def test_check_type_refuses_what_would_be_lost(type: pa.DataType) -> None:
    with pytest.raises(ValueError, match=r"x: column 'messages' is .*wanted a list of"):
        check_type(type, "x")


def test_check_type_takes_large_lists() -> None:
    check_type(pa.large_list(FIELD), "x")
    check_type(TRACED, "x")


def test_tokenize_messages_writes_tokens_and_masks(
    tokens: Path, dataset: Path, byte_vocabulary: Vocabulary
) -> None:
    opened = TokenDataset(tokens)
    assert opened.masked
    manifest = opened.manifest
    wanted = {name: len(rows) - (name == "unknown_role") for name, rows in BAD.items()}
    assert manifest["dropped"] == dict(sorted(wanted.items()))
    rows = sum(pq.read_metadata(file).num_rows for file in dataset.glob("data/*"))
    assert manifest["documents"] + sum(wanted.values()) == rows
    for shard, file in enumerate(sorted(dataset.glob("data/*"))):
        ids, mask = opened.tokens(shard), opened.mask(shard)
        assert len(ids) == len(mask) == manifest["shards"][shard]["tokens"]
        good = [r for r in pq.read_table(file).to_pylist() if verdict(r["messages"]) is None]
        sidecar = opened.sidecar(shard, ["id", "start", "length", "bytes"]).to_pylist()
        assert [row["id"] for row in sidecar] == [row["id"] for row in good]
        for place, row in zip(sidecar, good, strict=True):
            (encoded,) = encode([render_for_training(row["messages"])], byte_vocabulary)
            there = slice(place["start"], place["start"] + place["length"])
            assert ids[there].tolist() == [*encoded.tokens.tolist(), 2]
            assert mask[there].tolist() == [*encoded.mask.astype(bool).tolist(), False]
            assert place["bytes"] == encoded.size_bytes
    files = {entry["path"] for entry in manifest["files"]}
    assert files == {path.name for path in tokens.iterdir()} - {"manifest.json"}


def test_tokenize_messages_with_three_workers_and_a_break_gives_the_same_bytes(
    tokens: Path, dataset: Path, byte_vocabulary: Vocabulary, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "dataset")
    broken = copy / "data" / "00003.parquet"
    whole = broken.read_bytes()
    broken.write_bytes(b"x" * len(whole))
    with pytest.raises(pa.ArrowInvalid):
        tokenize(copy, byte_vocabulary.path, tmp_path / "out", workers=1, messages=True)
    assert not (tmp_path / "out" / "manifest.json").exists()
    done = tmp_path / "out" / "tokens-00000.mask"
    before = done.stat().st_mtime_ns
    broken.write_bytes(whole)
    tokenize(copy, byte_vocabulary.path, tmp_path / "out", workers=3, messages=True)
    assert contents(tmp_path / "out") == contents(tokens)
    assert done.stat().st_mtime_ns == before


def test_tokenize_messages_without_any_is_refused(
    byte_vocabulary: Vocabulary,
    write_dataset: Callable[..., Path],
    tokens: Path,
    dataset: Path,
    tmp_path: Path,
) -> None:
    texts = write_dataset(tmp_path / "texts", [["x"]])
    with pytest.raises(ValueError, match="no column 'messages'; columns here: id, text, source"):
        tokenize(texts, byte_vocabulary.path, tmp_path / "out", messages=True)
    with pytest.raises(ValueError, match="that another request made: chat_template is"):
        tokenize(dataset, byte_vocabulary.path, tokens)
    bad = write_conversations(tmp_path / "bad", [BAD["wrong_order"]])
    with pytest.raises(ValueError, match=r"holds no documents.*dropped: \{'wrong_order': 6\}"):
        tokenize(bad, byte_vocabulary.path, tmp_path / "out2", messages=True)


def add_masks(path: Path, masks: list[np.ndarray]) -> Path:
    """Makes a token dataset of numbered tokens one of conversations."""
    manifest = json.loads((path / MANIFEST).read_text())
    for number, mask in enumerate(masks):
        mask.astype(np.uint8).tofile(path / MASK_FILE.format(number))
        manifest["files"].append(entry_of(path, path / MASK_FILE.format(number)))
    manifest["masked"] = True
    write_json(path / MANIFEST, manifest)
    return path


shards = st.lists(st.lists(st.integers(1, 40), max_size=30), min_size=1, max_size=3).filter(
    lambda s: any(n <= 25 for shard in s for n in shard)
)


@quiet
@given(
    lengths=shards,
    plain=st.lists(st.integers(1, 70), min_size=1, max_size=20),
    seed=st.integers(0, 2**32 - 1),
)
def test_stream_targets_are_exactly_the_trained_tokens(
    write_tokens: Callable[..., Path], lengths: list[list[int]], plain: list[int], seed: int
) -> None:
    """Beside a part of texts, in one epoch: each trained token once, no other, nothing cut."""
    rng = np.random.default_rng(seed)
    masks = [rng.random(sum(shard)) < 0.5 for shard in lengths]
    for shard, mask in zip(lengths, masks, strict=True):
        mask[np.cumsum([0, *shard])[:-1]] = False  # a conversation begins with what is given
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        parts = {
            "chat": add_masks(write_tokens(root / "chat", lengths, "chat"), masks),
            "text": write_tokens(root / "text", [[1], [], [], plain], "text"),
        }
        chosen = tuple(Part(part, 1.0, max_repetition=1.0) for part in parts)
        wanted = {
            shard * 10_000 + k + 3
            for shard, (sizes, mask) in enumerate(zip(lengths, masks, strict=True))
            for start, size in zip(np.cumsum([0, *sizes]), sizes, strict=False)
            for k in range(start, start + size)
            if mask[k] and size <= 25
        }
        for part in ("chat", "text"):
            only = Mixture("m", (chosen[part == "text"],), 24, holdout_share=0.0, max_documents=4)
            mix(only, {part: parts[part]}, root / f"{part}-mixture", seed=0)
        seen: list[int] = []
        stream = Stream(root / "chat-mixture", 1)
        for batch in stream:
            assert batch.loss_mask is not None
            seen += batch.tokens[0, 1:][batch.loss_mask[0]].tolist()
            for document in lineage(root / "chat-mixture", int(batch.sample_indices[0])):
                assert document.start == 0
        assert sorted(seen) == sorted(wanted)
        part = stream.plan.parts[0]
        long = [size for shard in lengths for size in shard if size > 25]
        assert part["too_long"] == {"documents": len(long), "tokens": sum(long)}
        assert part["documents"] + len(long) == sum(map(len, lengths))
        both = Mixture("both", chosen, 24, holdout_share=0.0, max_documents=4)
        mix(both, parts, root / "both", seed=1)
        alone = {part: Stream(root / f"{part}-mixture", 1) for part in parts}
        together = Stream(root / "both", 1)
        for index in range(together.num_samples):
            batch = together.sample(index)
            number = together.plan.schedule.locate(np.array([index]))
            part = ("chat", "text")[int(number[0][0])]
            packs = [alone[part].sample(i) for i in range(alone[part].num_samples)]
            (same,) = [b for b in packs if np.array_equal(b.tokens, batch.tokens)]
            masks_there = [
                np.ones((1, 24), bool) if b.loss_mask is None else b.loss_mask
                for b in (same, batch)
            ]
            assert np.array_equal(*masks_there)


def test_stream_of_many_rows_reads_masks_as_of_one(tokens: Path, tmp_path: Path) -> None:
    parts = (Part("chat", 1.0),)
    manifest = mix(Mixture("m", parts, 100), {"chat": tokens}, tmp_path / "m", seed=0)
    stream = Stream(tmp_path / "m", 8)
    for batch in list(stream)[:5]:
        for row, index in enumerate(batch.sample_indices):
            one = stream.sample(int(index))
            assert np.array_equal(batch.tokens[row], one.tokens[0])
            assert np.array_equal(batch.loss_mask[row], one.loss_mask[0])
            trained = batch.tokens[row, 1:][batch.loss_mask[row]]
            assert (trained == 12).sum() >= 1
            assert not np.isin(trained, [0, 2, 10, 11, THINK_ID]).any()
    assert manifest["parts"][0]["masked"]
    assert manifest["parts"][0]["too_long"] == {"documents": 0, "tokens": 0}


def test_held_out_conversations_come_with_their_masks(
    tokens: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixture = Mixture("m", (Part("chat", 1.0),), 40, holdout_share=0.3)
    with caplog.at_level("WARNING"):
        manifest = mix(mixture, {"chat": tokens}, tmp_path / "m", seed=0)
    assert "conversations of chat are longer than 41 tokens and left out" in caplog.text
    part = manifest["parts"][0]
    documents = TokenDataset(tokens).manifest["documents"]
    left_out = part["too_long"]["documents"]
    assert 0 < left_out < documents
    assert part["documents"] + part["held_out"] + left_out == documents
    found = list(held_out(tmp_path / "m", 100_000))
    assert len(found) == part["held_out"]
    for document in found:
        assert len(document.tokens) == len(document.mask) <= 41
        assert document.mask[-3]  # the end of the turn, before a line feed and </s>
        assert not document.mask[[0, -2, -1]].any()


def test_mix_of_conversations_that_are_all_too_long_is_refused(
    tokens: Path, tmp_path: Path
) -> None:
    mixture = Mixture("m", (Part("chat", 1.0),), 4)
    with pytest.raises(ValueError, match="are conversations of over 5 tokens"):
        mix(mixture, {"chat": tokens}, tmp_path / "m", seed=0)


def test_stream_of_a_changed_mask_is_refused(tokens: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tokens, tmp_path / "tokens")
    mix(Mixture("m", (Part("chat", 1.0),), 100), {"chat": copy}, tmp_path / "m", seed=0)
    with (copy / "tokens-00000.mask").open("ab") as stream:
        stream.write(b"\1")
    with pytest.raises(ValueError, match=r"tokens-00000\.mask has .* it was changed"):
        Stream(tmp_path / "m", 2)
