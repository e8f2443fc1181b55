import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLOWS = (
    "curate",
    "takedown",
    "tokenize",
    "mask",
    "mix",
    "pretrain",
    "synth",
    "sft",
    "publish",
    "flywheel",
)
PACKAGES = ("pipelines", "filters", "synth", "mixtures", "training_hook", "flows")


@pytest.fixture(scope="module")
def server():
    from flows import prefect_settings

    prefect_settings.apply()
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


def test_no_file_in_flows_hides_a_package():
    names = {path.stem for path in (ROOT / "flows").iterdir()}
    assert not names & set(PACKAGES)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("form", ["flows.orchestrate:{}", "flows/orchestrate.py:{}"])
def test_flow_loads_in_both_forms(name, form, monkeypatch):
    from flows import prefect_settings

    prefect_settings.apply()
    from prefect.flows import load_flow_from_entrypoint

    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(form.format(name), use_placeholder_flow=False)
    assert flow.name == name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_curate_flow_writes_the_same_dataset_as_the_function(server, tmp_path):
    from flows import orchestrate, stages

    lines = [
        json.dumps({"text": f"the number of the page is {i} and that is all"}) for i in range(80)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    arguments = {
        "recipe": str(ROOT / "tests/laws/law_recipes.py") + ":no_dedup",
        "sources": (str(tmp_path / "in.jsonl"),),
        "workers": 1,
    }
    by_flow = orchestrate.curate(out=str(tmp_path / "flow"), **arguments)
    by_function = stages.curate(out=str(tmp_path / "function"), **arguments)
    assert by_flow == by_function
    assert by_flow["kept"] == 80
