"""The record of the judges: `verdict(...)` keeps a row; `make judges` says that they are to be written."""

import pytest

from qkit.bench.judged import Judgement


@pytest.fixture(scope="session")
def verdicts():
    """What was found in this run; a plain one writes nothing."""
    from verdicts import kept

    yield from kept()


@pytest.fixture
def verdict(verdicts):
    """Keep a row; call it last, when all has been asserted."""

    def keep(*key, **measured):
        verdicts.append(Judgement(*key, **measured))

    return keep
