"""The tables of the documentation are those of the result files."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
MADE = runpy.run_path(str(DOCS / "tables"))["tables"]()


@pytest.mark.parametrize("name", sorted(MADE))
def test_table_is_up_to_date(name: str) -> None:
    assert (DOCS / "results" / name).read_text() == MADE[name], "run: python docs/tables"
