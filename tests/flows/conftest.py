"""One Prefect server for all tests that start a flow: it costs about 20 s, so it is asked for by name and never autouse."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from minimal import Line, line_recipe


@pytest.fixture(scope="session")
def prefect_harness() -> Iterator[None]:
    """A server with an empty database, on loopback, for the session."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def built_line(tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The whole minimal line, built once by the real engine, each step in a process of its own. Work on a ``copy`` of it."""
    from flows.engine import Engine
    from flows.line import steps_of

    line = Line(tmp_path_factory.mktemp("line"))
    line_recipe(line.folder)
    engine = Engine(line.config())
    engine.run()
    assert [outcome.cached for outcome in engine.outcomes] == [False] * len(steps_of(engine.config))
    return line


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What stands on the built line takes over a minute: it is ``long``."""
    for item in items:
        if "built_line" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.long)
