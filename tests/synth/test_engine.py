import threading
import time

import pytest

from synth.engine import ClientSettings, generate, missing
from synth.journal import Journal
from synth.prompt_layout import PlainLayout
from synth.sampling import Request, Sampling
from synth.served_model import ServedModel, find_model

REVISION = "ab" * 32

FAST = ClientSettings(concurrency=8, patience_s=20)


def requests(number: int) -> list[Request]:
    layout = PlainLayout()
    return [
        Request("p", layout.path, layout.prompt(str(n)), layout.options(), REVISION, Sampling(), n)
        for n in range(number)
    ]


def echo(body) -> str:
    return f"{body['prompt']} {body['seed']}"


def server_of(loopback) -> ServedModel:
    return ServedModel(loopback.url, loopback.name)


def keys(server) -> list[tuple[str, int]]:
    return [(body["prompt"], body["seed"]) for body in server.bodies]


def test_generate_journals_the_answer_of_every_request(tmp_path, loopback):
    server = loopback(echo)
    wanted = requests(100)
    with Journal(tmp_path / "j") as journal:
        assert generate(wanted, PlainLayout(), server_of(server), journal, FAST) == 100
    with Journal(tmp_path / "j") as journal:
        for n, request in enumerate(wanted):
            found = journal[request.identity]
            assert found.text == f"Question: {n}\nReasoning: {n}"
            assert found.token_ids == tuple(found.text.encode())
            assert len(found.log_probabilities) == len(found.token_ids)
    assert sorted(keys(server)) == sorted(set(keys(server)))
    assert server.bodies[0]["model"] == server.name


def test_generate_keeps_to_its_concurrency(tmp_path, loopback):
    server = loopback(echo)
    server.delay_s = 0.01
    with Journal(tmp_path / "j") as journal:
        generate(requests(60), PlainLayout(), server_of(server), journal, FAST)
    assert server.most_in_flight == 8


def test_generate_asks_nothing_twice(tmp_path, loopback):
    server = loopback(echo)
    wanted = requests(20)
    with Journal(tmp_path / "j") as journal:
        assert generate(wanted[:12] * 2, PlainLayout(), server_of(server), journal, FAST) == 12
        assert missing(wanted + wanted, journal) == wanted[12:]
        assert generate(wanted, PlainLayout(), server_of(server), journal, FAST) == 8
        assert generate(wanted, PlainLayout(), server_of(server), journal, FAST) == 0
    assert len(keys(server)) == 20


def test_generate_goes_on_when_the_server_comes_back(tmp_path, loopback, capsys):
    before: list[int] = []

    def reply(body) -> str:
        if len(server.bodies) >= 20 and not before:
            before.append(len(server.bodies))
            server.delay_s = 60  # who asks from now on is waiting when the server goes
        return echo(body)

    server = loopback(reply)
    wanted = requests(60)

    def restart() -> None:
        while not before or len(server.bodies) == before[0]:
            time.sleep(0.001)
        server.stop()
        server.delay_s, server.reply = 0.01, echo
        server.start()

    thread = threading.Thread(target=restart)
    thread.start()
    with Journal(tmp_path / "j") as journal:
        generate(wanted, PlainLayout(), server_of(server), journal, FAST)
        assert not missing(wanted, journal)
    thread.join()
    repeats = len(server.bodies) - len(set(keys(server)))
    assert repeats <= FAST.concurrency
    said = capsys.readouterr().err
    assert said.index("does not answer") < said.index("the server is back")


def test_generate_asks_again_after_a_broken_connection_and_a_server_error(tmp_path, loopback):
    failures = iter([None, 500, 503])
    server = loopback(lambda body: next(failures, echo(body)))
    with Journal(tmp_path / "j") as journal:
        generate(requests(5), PlainLayout(), server_of(server), journal, FAST)
        assert len(journal) == 5
    assert len(server.bodies) == 8


def test_generate_stops_when_the_server_stays_away(tmp_path, loopback):
    server = loopback(echo)
    server.stop()
    settings = ClientSettings(patience_s=0.1)
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(RuntimeError, match="start the server and run the same command again"),
    ):
        generate(requests(5), PlainLayout(), server_of(server), journal, settings)


def test_generate_stops_when_its_own_server_has_ended(tmp_path, loopback):
    server = loopback(echo)
    server.stop()

    def check() -> None:
        raise RuntimeError("vLLM ended by itself")

    with Journal(tmp_path / "j") as journal, pytest.raises(RuntimeError, match="ended by itself"):
        generate(requests(5), PlainLayout(), server_of(server), journal, FAST, check)


def test_generate_stops_at_a_refusal_and_keeps_what_was_answered(tmp_path, loopback):
    server = loopback(lambda body: 404 if body["seed"] == 30 else echo(body))
    with (
        Journal(tmp_path / "j") as journal,
        pytest.raises(RuntimeError, match="refused a request with 404"),
    ):
        generate(requests(60), PlainLayout(), server_of(server), journal, FAST)
    with Journal(tmp_path / "j") as journal:
        assert 30 - FAST.concurrency <= len(journal) < 60


def test_find_model_reads_the_revision_from_the_name(loopback):
    server = loopback(echo)
    assert find_model(f"{server.url}/v1/").revision == REVISION
    server.name = "gpt@latest"
    with pytest.raises(ValueError, match="serves gpt@latest; wanted a name that ends with @"):
        find_model(server.url)


def test_client_settings_out_of_range_are_refused():
    with pytest.raises(ValueError, match="concurrency is 0; wanted 1 or more"):
        ClientSettings(concurrency=0)
