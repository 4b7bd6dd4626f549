"""The layers import downwards only, and ``import pyro_seq`` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "pyro_seq"
LAYERS = (
    ("ops",),
    ("distributions",),
    ("nn",),
    ("memory", "engines"),
    ("models",),
    ("guides",),
    ("inference",),
    ("training", "evaluation"),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
PARTS = {*LEVEL, "data", "plugins", "testing"}
OPTIONAL = ("matplotlib", "funsor", "tensorboard")
FILES = sorted(ROOT.rglob("*.py"))


def allowed(importer: str) -> set[str]:
    """Part names that a file of part `importer` may import, itself included."""
    if importer == "testing":
        return PARTS
    if importer == "plugins":
        return set()
    if importer in ("__init__", "__main__"):
        return {"plugins"}
    if importer == "data":
        return {"data", "plugins"}
    below = {name for name, level in LEVEL.items() if level < LEVEL[importer]}
    with_data = {"data"} if importer in LAYERS[-1] else set()
    return below | with_data | {importer, "plugins"}


def imported_parts(source: str, package: str) -> set[str]:
    """First names below pyro_seq that the source imports anywhere, absolute or relative."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            names = [alias.name for alias in node.names]
            modules += [f"{module}.{n}" for n in names] if module == "pyro_seq" else [module]
    inside = [m.split(".")[1] for m in modules if m.startswith("pyro_seq.")]
    return {name for name in inside if not name.startswith("__")}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def package_of(path: Path) -> str:
    return ".".join(("pyro_seq", *path.relative_to(ROOT).parts[:-1]))


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    found = PARTS & imported_parts(path.read_text(), package_of(path))
    assert not found - allowed(part), f"{part!r} must not import {sorted(found - allowed(part))}"


@pytest.mark.parametrize(
    ("source", "package", "expected"),
    [
        ("import pyro_seq.models.kvae", "pyro_seq.ops", {"models"}),
        ("from pyro_seq import models, plugins", "pyro_seq.ops", {"models", "plugins"}),
        ("from pyro_seq.models import KVAE", "pyro_seq.ops", {"models"}),
        ("from ..models import kvae", "pyro_seq.ops", {"models"}),
        ("from .. import models", "pyro_seq.ops", {"models"}),
        ("from . import kalman", "pyro_seq.ops", {"ops"}),
        ("from ...nn import x", "pyro_seq.ops.kalman", {"nn"}),
        ("def f():\n    import pyro_seq.training", "pyro_seq.ops", {"training"}),
        ("import torch, pyro", "pyro_seq.ops", set()),
    ],
)
def test_the_checker_sees_every_form(source: str, package: str, expected: set[str]) -> None:
    assert imported_parts(source, package) == expected


def test_rules() -> None:
    assert "models" not in allowed("ops") and "ops" in allowed("models")
    assert "engines" not in allowed("memory") and "evaluation" not in allowed("training")
    assert "engines" in allowed("guides") and "models" not in allowed("engines")
    assert allowed("data") == {"data", "plugins"} and allowed("plugins") == set()


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_pyro_seq_is_light() -> None:
    heavy = ("arviz", "torch", "pyro", *OPTIONAL)
    found = run(f"import sys, pyro_seq; print([m for m in {heavy} if m in sys.modules])")
    assert found.strip() == "[]"


def test_all_parts_import_without_the_optional_packages() -> None:
    parts = sorted(
        {f"pyro_seq.{part_of(p)}" for p in FILES} - {"pyro_seq.__init__", "pyro_seq.__main__"}
    )
    hide = f"import sys, importlib\nfor m in {OPTIONAL}: sys.modules[m] = None\n"
    out = run(
        hide + f"for m in {parts}: importlib.import_module(m)\n" + "print('arviz' in sys.modules)"
    )
    assert out.strip() == "False"
