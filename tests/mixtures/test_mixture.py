import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mixtures.mixture import Mixture, Part, Phase, mix
from mixtures.plan import Plan
from mixtures.schedule import BLOCK

LENGTHS = np.maximum(1, np.random.default_rng(1).lognormal(3.3, 1.0, 400)).astype(int).tolist()
TWO = (Part("docs", 3.0), Part("code", 1.0))


@pytest.fixture
def datasets(write_tokens: Callable[..., Path], tmp_path: Path) -> dict[str, Path]:
    return {
        "docs": write_tokens(tmp_path / "docs", [LENGTHS[:250], LENGTHS[250:]], "docs"),
        "code": write_tokens(tmp_path / "code", [LENGTHS[:150]], "code"),
    }


def test_mix_counts_samples_tokens_and_epochs(datasets: dict[str, Path], tmp_path: Path) -> None:
    mixture = Mixture("two", TWO, 64, num_samples=300)
    manifest = mix(mixture, datasets, tmp_path / "out", seed=0)
    assert [row["samples"] for row in manifest["table"]] == [225, 75]
    assert [row["tokens"] for row in manifest["table"]] == [225 * 64, 75 * 64]
    for row, part in zip(manifest["table"], manifest["parts"], strict=True):
        assert row["epochs"] == part["repetition"] == row["samples"] / part["packs"]
        # the tokens of the sidecar that are not held out, once each and once more at each cut
        assert part["tokens"] >= part["packs"] * 65 * 0.98
        assert part["efficiency"] > 0.98
    assert manifest["num_samples"] == 300


def test_mix_without_a_number_takes_what_the_caps_allow(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    parts = (Part("docs", 3.0, max_repetition=2.0), Part("code", 1.0, max_repetition=0.5))
    manifest = mix(Mixture("caps", parts, 64), datasets, tmp_path / "out", seed=0)
    repetition = {part["name"]: part["repetition"] for part in manifest["parts"]}
    assert repetition["docs"] <= 2.0
    assert repetition["code"] <= 0.5
    code = next(part for part in manifest["parts"] if part["name"] == "code")
    docs = next(part for part in manifest["parts"] if part["name"] == "docs")
    most = min(docs["packs"] * 2.0 / 0.75, code["packs"] * 0.5 / 0.25)
    assert most - 8 <= manifest["num_samples"] <= most + 8


def test_mix_refuses_more_repetition_than_a_part_allows(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    mixture = Mixture("much", TWO, 64, num_samples=100_000)
    message = r"show part docs .* times, max_repetition is 4; at most"
    with pytest.raises(ValueError, match=message) as found:
        mix(mixture, datasets, tmp_path / "out", seed=0)
    assert not (tmp_path / "out").exists()
    most = int(str(found.value).split("at most ")[1].split(" ")[0].replace(",", ""))
    exact = Mixture("much", TWO, 64, num_samples=most)
    assert mix(exact, datasets, tmp_path / "out", seed=0)["num_samples"] == most


def test_mix_phases_follow_each_other_with_their_own_weights(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    phases = (
        Phase("start", 0.9, (("docs", 1.0),)),
        Phase("anneal", 0.1, (("docs", 0.25), ("code", 0.75))),
    )
    mixture = Mixture("two", TWO, 64, phases=phases, num_samples=400)
    manifest = mix(mixture, datasets, tmp_path / "out", seed=0)
    assert [(p["start"], p["stop"]) for p in manifest["phases"]] == [(0, 360), (360, 400)]
    rows = {(row["phase"], row["part"]): row["samples"] for row in manifest["table"]}
    assert rows == {
        ("start", "docs"): 360,
        ("start", "code"): 0,
        ("anneal", "docs"): 10,
        ("anneal", "code"): 30,
    }


def test_mix_holds_out_the_same_documents_whatever_the_order(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    mixture = Mixture("two", TWO, 64, num_samples=300, holdout_share=0.1)
    other = Mixture("other", TWO[::-1], 32, num_samples=100, holdout_share=0.1)
    for name, chosen, seed in (("a", mixture, 0), ("b", other, 9)):
        mix(chosen, datasets, tmp_path / name, seed)
    held = [
        {
            tuple(row.values())
            for row in pq.read_table(tmp_path / name / "holdout.parquet").to_pylist()
        }
        for name in "ab"
    ]
    assert held[0] == held[1]
    assert 25 < len(held[0]) < 85  # a tenth of 550
    parts = {
        part["name"]: part
        for part in json.loads((tmp_path / "a/manifest.json").read_text())["parts"]
    }
    assert parts["docs"]["documents"] + parts["docs"]["held_out"] == 400


def test_mix_same_request_gives_the_same_bytes(datasets: dict[str, Path], tmp_path: Path) -> None:
    mixture = Mixture("two", TWO, 64, num_samples=300)
    for name in ("a", "b"):
        mix(mixture, datasets, tmp_path / name, seed=3)
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert (
                path.read_bytes()
                == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
            )
    before = (tmp_path / "a" / "manifest.json").stat().st_mtime_ns
    assert mix(mixture, datasets, tmp_path / "a", seed=3)["num_samples"] == 300
    assert (tmp_path / "a" / "manifest.json").stat().st_mtime_ns == before


def test_mix_another_seed_is_another_mixture(datasets: dict[str, Path], tmp_path: Path) -> None:
    mixture = Mixture("two", TWO, 64, num_samples=300)
    first = mix(mixture, datasets, tmp_path / "a", seed=3)
    second = mix(mixture, datasets, tmp_path / "b", seed=4)
    assert first["fingerprint"] != second["fingerprint"]
    with pytest.raises(ValueError, match="seed is 3 there and 4 here"):
        mix(mixture, datasets, tmp_path / "a", seed=4)


def test_mix_warns_of_packs_that_stay_empty(
    write_tokens: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = write_tokens(tmp_path / "tokens", [[5] * 900])
    mixture = Mixture("short", (Part("docs", 1.0),), 512, max_documents=16)
    with caplog.at_level(logging.WARNING):
        manifest = mix(mixture, {"docs": tokens}, tmp_path / "out", seed=0)
    assert manifest["parts"][0]["efficiency"] < 0.2
    assert "Raise max_documents" in caplog.text


def test_mix_wrong_token_datasets_are_refused(
    datasets: dict[str, Path], write_tokens: Callable[..., Path], tmp_path: Path
) -> None:
    mixture = Mixture("two", TWO, 64)
    with pytest.raises(ValueError, match="wanted one for each part: docs, code"):
        mix(mixture, {"docs": datasets["docs"]}, tmp_path / "out", seed=0)
    manifest = json.loads((datasets["code"] / "manifest.json").read_text())
    manifest["request"]["vocabulary"] = "another"
    (datasets["code"] / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="of 2 vocabularies"):
        mix(mixture, datasets, tmp_path / "out", seed=0)


def test_mix_part_without_documents_is_refused(
    write_tokens: Callable[..., Path], tmp_path: Path
) -> None:
    tokens = write_tokens(tmp_path / "tokens", [[]])
    with pytest.raises(ValueError, match="part docs has no document left to train on"):
        mix(Mixture("none", (Part("docs", 1.0),), 64), {"docs": tokens}, tmp_path / "out", 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parts": ()}, "number of parts is 0"),
        ({"parts": (Part("docs", 1.0), Part("docs", 2.0))}, "a part appears twice"),
        ({"parts": (Part("docs", 1.0), Part("code", 0.0))}, "no phase draws from code"),
        ({"parts": (Part("docs", -1.0),)}, "the weight of docs is -1.0"),
        ({"parts": (Part("docs", float("nan")),)}, "the weight of docs is nan"),
        ({"parts": (Part("docs", 1.0, 0.0),)}, "max_repetition of part docs is 0.0"),
        ({"sequence_length": 1}, "sequence_length is 1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"holdout_share": 1.0}, "holdout_share is 1.0"),
        ({"phases": (Phase("a", 0.0, (("docs", 1.0),)),)}, "share of phase a is 0.0"),
        ({"phases": (Phase("a", 1.0, (("cod", 1.0),)),)}, "parts here: docs, code"),
        ({"phases": (Phase("a", 1.0, (("docs", 1.0),)),)}, "no phase draws from code"),
    ],
)
def test_mixture_wrong_setting_is_refused(settings: dict, message: str) -> None:
    whole = {"name": "wrong", "parts": TWO, "sequence_length": 64} | settings
    with pytest.raises(ValueError, match=message):
        Mixture(**whole)


def test_mix_share_below_one_in_a_cycle_is_refused(
    datasets: dict[str, Path], tmp_path: Path
) -> None:
    mixture = Mixture("tiny", (Part("docs", 1.0), Part("code", 1e-9)), 64)
    with pytest.raises(ValueError, match="part code gets less than one in"):
        mix(mixture, datasets, tmp_path / "out", seed=0)


def test_mix_weights_hold_in_every_block(datasets: dict[str, Path], tmp_path: Path) -> None:
    mix(Mixture("two", TWO, 16, num_samples=1500), datasets, tmp_path / "out", seed=0)
    parts, _, _ = Plan(tmp_path / "out").schedule.locate(np.arange(1500))
    code = np.cumsum(parts == 1)
    for end in range(BLOCK, 1500, BLOCK):
        assert abs(code[end - 1] - end / 4) < 1
