import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer

from mixtures import vocabulary as module
from mixtures.tokenizer_json import imported_fingerprint, tokenizer_identity
from mixtures.vocabulary import Vocabulary, load_vocabulary
from mixtures.vocabulary_import import import_vocabulary

# As Nemotron-H's (after Mistral's Tekken): case decides where words end, and digits are single.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<unk>", "<s>", "</s>", "[INST]", *(f"<SPECIAL_{i}>" for i in range(4, 16)))
SOURCE = "".join(p.read_text("utf-8") for p in sorted(Path(json.__file__).parent.glob("*.py")))


def split_by_pattern() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def train(pre_tokenizer: pre_tokenizers.PreTokenizer, **parts) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in SPECIAL],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator([SOURCE], trainer)
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **config) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    written = {"tokenizer_class": "PreTrainedTokenizerFast", **names, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(written))
    return folder


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> Path:
    """A folder as a model is released with: special tokens around a text, and a length."""
    around = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = train(split_by_pattern(), post_processor=around)
    tokenizer.enable_truncation(32)
    folder = save(tmp_path_factory.mktemp("released") / "model", tokenizer)
    (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


@pytest.fixture(scope="module")
def imported(released, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("imported") / "vocabulary"
    import_vocabulary(released, out)
    return out


@pytest.fixture(scope="module")
def loaded(imported) -> Vocabulary:
    return load_vocabulary(imported)


@pytest.fixture(scope="module")
def oracle(released) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(released / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


texts = st.lists(
    st.one_of(
        st.text(max_size=40),
        st.sampled_from([*SPECIAL, " ", "\n", "  ", "the ", "The word", "JSONDecoder", "123 45"]),
        st.integers(0, len(SOURCE)).map(lambda at: SOURCE[at : at + 60]),
    ),
    max_size=12,
).map("".join)


@settings(max_examples=200)
@given(texts)
def test_imported_vocabulary_encodes_as_tokenizers_and_loses_no_byte(loaded, oracle, text):
    ids = loaded.encode_batch([text])[0]
    assert ids.tolist() == oracle.encode(text, add_special_tokens=False).ids
    assert loaded.decode(ids) == text


@settings(max_examples=50)
@given(st.lists(texts, min_size=3, max_size=12), st.integers(1, 40))
def test_imported_vocabulary_in_pieces_gives_the_same_ids(loaded, oracle, parts, characters):
    text = " ".join(parts) + " the end of it"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARACTERS", characters)
        found = loaded.encode_batch([text])[0]
    # a text without a word border for four pieces may be cut anywhere: then only its text is kept
    longest = max(map(len, module._WORD_BORDER.split(text)))
    if longest < 3 * characters:
        assert found.tolist() == oracle.encode(text, add_special_tokens=False).ids
    assert oracle.decode(found.tolist(), skip_special_tokens=False) == text


def test_import_keeps_the_files_and_knows_the_special_ids(released, imported, tmp_path):
    vocabulary = load_vocabulary(imported)
    assert (vocabulary.size, vocabulary.dtype) == (700, np.uint16)
    assert vocabulary.manifest["special_tokens"]["<SPECIAL_12>"] == 12
    special = vocabulary.special_ids
    assert (special.bos, special.eos, special.pad, special.stops) == (1, 2, 2, (2,))
    assert vocabulary.manifest["cut_at_spaces"]
    vocabulary.write_hf(tmp_path)
    for path in released.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert import_vocabulary(released, imported) == vocabulary.manifest


def test_import_with_another_end_of_document(released, tmp_path):
    manifest = import_vocabulary(released, tmp_path / "v", end_of_document="<SPECIAL_12>")
    vocabulary = load_vocabulary(tmp_path / "v")
    assert vocabulary.eos_id == 12
    assert vocabulary.special_ids.stops == (12, 2)
    assert manifest["fingerprint"] == imported_fingerprint(released / "tokenizer.json", 12)
    assert manifest["fingerprint"] != imported_fingerprint(released / "tokenizer.json", 2)
    with pytest.raises(ValueError, match=r"no token '<end>'.* special tokens here: <unk>, <s>"):
        import_vocabulary(released, tmp_path / "w", end_of_document="<end>")


def test_identity_is_that_of_the_ids_and_not_of_the_file(released, tmp_path):
    """Saved again by transformers, laid out otherwise, with merges in their older form: equal."""
    mine = tokenizer_identity(released / "tokenizer.json")
    AutoTokenizer.from_pretrained(released).save_pretrained(tmp_path / "again")
    again = tmp_path / "again" / "tokenizer.json"
    assert tokenizer_identity(again) == mine
    content = json.loads(again.read_bytes())
    content["truncation"] = content["post_processor"] = None
    content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
    again.write_text(json.dumps(content))
    assert tokenizer_identity(again) == mine
    content["model"]["merges"][:2] = content["model"]["merges"][1::-1]
    again.write_text(json.dumps(content))
    assert tokenizer_identity(again) != mine


def test_import_refuses_a_tokenizer_that_loses_bytes(tmp_path):
    lossy = train(split_by_pattern(), normalizer=normalizers.NFKC())
    with pytest.raises(ValueError, match="does not give back every byte: "):
        import_vocabulary(save(tmp_path / "model", lossy), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokenizer_that_puts_a_space_in_front_is_not_cut(tmp_path):
    prefixed = train(pre_tokenizers.ByteLevel(add_prefix_space=True))
    with pytest.raises(ValueError, match="does not give back every byte"):
        import_vocabulary(save(tmp_path / "prefixed", prefixed), tmp_path / "out")
    plain = train(pre_tokenizers.ByteLevel(add_prefix_space=False))
    assert import_vocabulary(save(tmp_path / "plain", plain), tmp_path / "a")["cut_at_spaces"]
    plain.add_tokens(["New York"])
    folder = save(tmp_path / "added", plain)
    assert not import_vocabulary(folder, tmp_path / "b")["cut_at_spaces"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_CHARACTERS", 4)
        ids = load_vocabulary(tmp_path / "b").encode_batch(["in New York state"])[0]
    assert plain.token_to_id("New York") in ids


def test_import_refuses_what_is_no_tokenizer(released, tmp_path):
    with pytest.raises(ValueError, match=r"has no tokenizer\.json; wanted the folder"):
        import_vocabulary(tmp_path, tmp_path / "out")
    shutil.copytree(released, tmp_path / "cut")
    (tmp_path / "cut" / "tokenizer.json").write_text('{"model": {"vocab"')
    with pytest.raises(ValueError, match=r"is no tokenizer\.json: JSONDecodeError"):
        import_vocabulary(tmp_path / "cut", tmp_path / "out")
