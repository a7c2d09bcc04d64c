"""Where the tests of this folder run: on the GPU, and by the same code on a CPU where there is none.

They need torch, transformers, trl, peft, accelerate, datasets, pydantic and pyarrow, no network, and nothing of Prefect; docs/gpu.md
says how to run them on a machine that has only these.
"""

from __future__ import annotations

import pytest
from small import Small


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """cpu, or cuda in tests that are skipped without one. Steps take the GPU when there is one, so cpu is for machines without."""
    import torch

    if request.param == "cpu" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU: the same test runs on it")
    return str(request.param)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A base with random weights, chats and pairs."""
    return Small(tmp_path_factory.mktemp("small"))
