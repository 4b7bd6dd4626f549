"""Every Python block of the documentation and the README runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pyro_seq.testing import (
    DISTRIBUTION_CONTRACTS,
    ENGINE_CONTRACTS,
    FILTER_CONTRACTS,
    GUIDE_CONTRACTS,
    MEMORY_CONTRACTS,
    MODEL_CONTRACTS,
    WEIGHT_CONTRACTS,
)

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(.*?)```", re.S)
CONTINUED = {"docs/extend/guide.md": "docs/extend/model.md"}
PAGES = {
    str(page.relative_to(ROOT)): BLOCK.findall(page.read_text())
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
}


@pytest.mark.parametrize(
    "page", [page for page in PAGES if PAGES[page] and page not in CONTINUED.values()]
)
def test_page(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {"__name__": page}
    for block in PAGES.get(CONTINUED.get(page, ""), []) + PAGES[page]:
        exec(compile(block, page, "exec"), names)


def test_the_page_of_contracts_lists_them_all() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs/contracts.md").read_text(), re.M)
    stated = (
        *(*MODEL_CONTRACTS, *GUIDE_CONTRACTS, *FILTER_CONTRACTS),
        *(*DISTRIBUTION_CONTRACTS, *WEIGHT_CONTRACTS, *MEMORY_CONTRACTS),
        *ENGINE_CONTRACTS,
    )
    assert listed == [contract.__name__ for contract in stated]
