import dataclasses
import json

import pytest

from synth.sampling import Request, Sampling

REQUEST = Request("p", "/v1/completions", {"prompt": "1 + 1"}, {}, "ab" * 32, Sampling(), 7)


@pytest.mark.parametrize(
    "change",
    [
        {"path": "/v1/chat/completions"},
        {"prompt": {"prompt": "1 + 2"}},
        {"revision": "cd" * 32},
        {"sampling": Sampling(temperature=0.7)},
        {"sampling": Sampling(stop=())},
        {"seed": 8},
    ],
)
def test_identity_changes_with_what_makes_an_answer(change):
    assert dataclasses.replace(REQUEST, **change).identity != REQUEST.identity


def test_identity_does_not_change_with_anything_else():
    again = dataclasses.replace(REQUEST, problem_id="q", options={"logprobs": 3})
    assert again.identity == REQUEST.identity == "40c1a1e0fbbfbf78603bf9f06609e3b9"
    assert len(REQUEST.identity) == 32


def test_body_is_what_the_server_is_asked():
    body = REQUEST.body("model@x")
    assert json.loads(json.dumps(body)) == body
    assert (body["model"], body["prompt"], body["seed"], body["n"]) == ("model@x", "1 + 1", 7, 1)
    assert (body["temperature"], body["max_tokens"]) == (0.8, 256)


@pytest.mark.parametrize("change", [{"temperature": -1}, {"top_p": 0}, {"max_tokens": 0}])
def test_sampling_out_of_range_is_refused(change):
    with pytest.raises(ValueError, match=f"{next(iter(change))} is"):
        Sampling(**change)
