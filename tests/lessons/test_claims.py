"""Every claim has a cell, every cell that has a claim shows something, and the ledger says what the cells say."""

import json
import re

import pytest

import claims

SHOWN = claims.claims_of()


def test_the_ledger_is_what_the_cells_say():
    stored = (claims.SHELF / "claims.md").read_text(encoding="utf-8")
    assert stored == claims.ledger(), "lessons/claims.md is out of date; make claims"


def test_every_claim_of_the_newsletter_has_a_cell():
    missing = {f"N{number:02}" for number in range(1, 31)} - {shown.id for shown in SHOWN}
    assert not missing, f"no cell holds {', '.join(sorted(missing))} against anything"


def test_ids_are_those_of_the_newsletter_or_ours():
    assert not [shown.id for shown in SHOWN if not re.fullmatch(r"N(0[1-9]|[12]\d|30)|Q\d\d", shown.id)]


def test_one_id_is_one_claim_from_one_source():
    words: dict[str, set[tuple[str, str]]] = {}
    for shown in SHOWN:
        words.setdefault(shown.id, set()).add((shown.claim, shown.source))
    assert not {id: texts for id, texts in words.items() if len(texts) > 1}


def test_one_claim_has_one_id():
    ids: dict[str, set[str]] = {}
    for shown in SHOWN:
        ids.setdefault(shown.claim, set()).add(shown.id)
    assert not {claim: several for claim, several in ids.items() if len(several) > 1}


@pytest.mark.parametrize("shown", SHOWN, ids=[f"{shown.id}-{shown.cell}" for shown in SHOWN])
def test_a_claim_has_words_and_its_cell_asserts_or_prints(shown):
    assert shown.claim.strip() and shown.source.strip()
    assert shown.verdict in claims.VERDICTS
    assert re.search(r"^\s*assert ", shown.code, re.M) or shown.outputs


def test_the_newsletter_is_the_source_of_its_claims_and_of_no_other():
    assert not [shown for shown in SHOWN if (shown.source == "newsletter") != shown.id.startswith("N")]


def test_a_row_of_the_ledger_names_every_cell_and_keeps_its_columns(tmp_path):
    def cell(id, verdict):
        record = {"claim": "four | bits\nare enough", "verdict": verdict, "source": "newsletter"}
        return {"id": id, "source": ["assert True"], "outputs": [], "metadata": {"qkit": {"claims": {"N11": record}}}}

    for name, verdict in (("04_b.ipynb", "bounded"), ("02_a.ipynb", "confirmed")):
        (tmp_path / name).write_text(json.dumps({"cells": [cell(name[:2] + "-07", verdict)]}))
    row = claims.ledger(tmp_path).splitlines()[-1]
    assert row == (
        "| N11 | four \\| bits are enough | confirmed ([02-07](02_a.ipynb#cell-id=02-07)), "
        "bounded ([04-07](04_b.ipynb#cell-id=04-07)) | newsletter |"
    )
