import pytest
import torch


@pytest.fixture(autouse=True)
def fresh_compiler(request: pytest.FixtureRequest) -> None:
    """Forgets the graphs of earlier tests on a GPU: the compiler has a limit for a process."""
    if request.node.get_closest_marker("gpu"):
        torch._dynamo.reset()
