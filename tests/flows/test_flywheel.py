import inspect
import json
from pathlib import Path

import pytest

from flows import stages
from flows.flywheel import SUMMARY, flywheel

RECIPE = "flows.recipes.packages:wheel"


def test_every_stage_is_called_as_it_can_be_and_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "report", lambda folder: {"report": f"{folder}/report.html"})
    called = []

    def call(name, **arguments):
        inspect.signature(getattr(stages, name)).bind(**arguments)
        called.append(name)
        return dict.fromkeys(SUMMARY[name], 1) | {"status": "finished"}

    result = flywheel(RECIPE, str(tmp_path), call=call)
    order = ["curate", "classify", "train_tokenizer", "mix", "pretrain", "synth", "sft"]
    assert [name for name in dict.fromkeys(called) if name in order] == order
    assert len(called) == 19
    written = json.loads((tmp_path / "wheel.json").read_text())
    assert [stage["name"] for stage in written["stages"]] == called
    assert result["folders"] == written["folders"]


def test_a_stopped_training_stops_the_wheel_and_says_how_to_go_on(tmp_path):
    def call(name, **arguments):
        status = "stopped" if name == "pretrain" else "finished"
        return dict.fromkeys(SUMMARY[name], 1) | {"status": status}

    with pytest.raises(RuntimeError, match="pretrain was stopped; run the same command again"):
        flywheel(RECIPE, str(tmp_path), call=call)
    assert not (tmp_path / "model").exists()


def test_the_number_of_stages_is_announced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(stages, "report", lambda folder: {"report": ""})
    flywheel(
        RECIPE,
        str(tmp_path),
        call=lambda name, **_: dict.fromkeys(SUMMARY[name], 1) | {"status": "finished"},
    )
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("[")]
    assert lines[0].startswith("[1/19] curate: 25% of the documents")
    assert lines[-1].startswith("[19/19] evaluate")
    assert Path(tmp_path, "wheel.json").exists()
