import warnings

import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> None:
    """Forgets the graphs of earlier tests on a GPU: the compiler has a limit for a process."""
    if request.node.get_closest_marker("gpu"):
        with warnings.catch_warnings():
            # resetting loads the compiler, which in torch 2.11 uses what torch 2.11 deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            torch._dynamo.reset()
