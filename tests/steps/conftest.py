"""The tiny trained chain, built once a session and only as far as tests ask for it."""

from __future__ import annotations

import pytest
from minimal import TinyChain


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> TinyChain:
    """Artifacts of every model step, as real steps build them."""
    return TinyChain(tmp_path_factory.mktemp("chain"))
