from __future__ import annotations

import decimal
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from pyro_seq import plugins
from pyro_seq.__main__ import main
from pyro_seq.plugins import (
    BrokenPluginError,
    PluginCollisionError,
    Registry,
    UnknownPluginError,
)

PACKAGES = Path(__file__).parent / "plugin_package"


def one() -> None: ...


def two() -> None: ...


@pytest.fixture
def registry() -> Registry:
    return Registry("shapes", {"decimal": "decimal"})


def announce(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """Pretend that an installed package announces these entry points in every group."""
    points = [EntryPoint(name, value, "pyro_seq.shapes") for name, value in values.items()]

    def found(group: str, name: str | None = None) -> list[EntryPoint]:
        return [p for p in points if p.group == group and name in (None, p.name)]

    monkeypatch.setattr(plugins, "entry_points", found)


def test_register_then_get(registry: Registry) -> None:
    assert registry.register("one", one) is one
    assert registry.get("one") is one
    assert registry.available() == ("decimal", "one")


def test_registering_the_same_definition_again_replaces_it(registry: Registry) -> None:
    def make() -> Callable[[], None]:
        def part() -> None: ...

        return part

    first, second = make(), make()
    registry.register("part", first)
    assert registry.get("part") is first
    registry.register("part", second)
    assert registry.get("part") is second


def test_a_taken_name_is_refused_and_both_sides_are_named(registry: Registry) -> None:
    registry.register("one", one)
    with pytest.raises(PluginCollisionError, match=r"'one' of kind 'shapes'.*:one.*:two"):
        registry.register("one", two)
    assert registry.get("one") is one


def test_a_built_in_name_is_refused_before_the_built_in_is_loaded(registry: Registry) -> None:
    with pytest.raises(PluginCollisionError, match=r"built-in part of decimal.*:one"):
        registry.register("decimal", one)


@pytest.mark.parametrize("name", ["", None, 3])
def test_the_name_must_be_a_string(registry: Registry, name: object) -> None:
    with pytest.raises(TypeError, match="non-empty string"):
        registry.register(name, one)  # type: ignore[arg-type]


def test_unknown_name_lists_what_there_is(registry: Registry) -> None:
    registry.register("circle", one)
    with pytest.raises(
        UnknownPluginError, match=r"'cirle'.*available: circle, decimal.*mean 'circle'"
    ):
        registry.get("cirle")
    with pytest.raises(UnknownPluginError, match="mean 'circle'"):
        registry.get("CIRCLE")


def test_unknown_kind_lists_the_kinds() -> None:
    for call in (
        lambda: plugins.get("modles", "kvae"),
        lambda: plugins.available("modles"),
        lambda: plugins.register("modles", "x"),
    ):
        with pytest.raises(UnknownPluginError, match=r"'modles'; kinds: models,.*mean 'models'"):
            call()


def test_built_in_module_that_registers_nothing(registry: Registry) -> None:
    with pytest.raises(BrokenPluginError, match="decimal registered no part 'decimal'"):
        registry.get("decimal")


def test_built_in_module_that_does_not_import() -> None:
    registry = Registry("shapes", {"ring": "pyro_seq.no_such_module"})
    with pytest.raises(BrokenPluginError, match=r"'ring'.*pyro_seq.no_such_module") as caught:
        registry.get("ring")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_entry_points_load_only_on_lookup(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, ring="colorsys:hls_to_rgb")
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert registry.available() == ("decimal", "ring")
    assert "colorsys" not in sys.modules
    assert registry.get("ring").__name__ == "hls_to_rgb"
    assert "colorsys" in sys.modules


def test_entry_point_against_decorator(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, one=f"{__name__}:one", two=f"{__name__}:one")
    registry.register("one", one)
    registry.register("two", two)
    assert registry.get("one") is one
    with pytest.raises(PluginCollisionError, match=r":two, and entry point 'two = .*:one'"):
        registry.get("two")


def test_entry_point_against_built_in_part(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, decimal="colorsys:hls_to_rgb")
    registry.register("decimal", decimal.Decimal)
    with pytest.raises(PluginCollisionError, match=r"decimal:Decimal, and entry point 'decimal ="):
        registry.get("decimal")


def test_check_leaves_out_the_broken_and_warns(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(monkeypatch, bad="colorsys:absent", good="colorsys:hls_to_rgb", number="sys:maxsize")
    with pytest.warns(RuntimeWarning) as warned:
        assert registry.available(check=True) == ("good",)
    text = " ".join(str(w.message) for w in warned)
    assert "bad = colorsys:absent" in text and "AttributeError" in text
    assert "must name a class or function, but names a int" in text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    listed = dict(line.split(": ") for line in capsys.readouterr().out.splitlines())
    assert tuple(listed) == plugins.kinds()
    assert "kvae" in listed["models"].split(", ")
    assert main(["info"]) == 0
    assert "pyro-ppl" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["list", "modles"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the two plugin packages, without network."""
    work = tmp_path_factory.mktemp("plugins")
    sources = [shutil.copytree(PACKAGES / n, work / n) for n in ("tiny", "broken")]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", *options]
        + ["--target", str(work / "site"), *map(str, sources)],
        check=True,
    )
    return work / "site"


def python(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(site), str(PACKAGES.parents[1])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True
    )


def lookup_error(site: Path, kind: str, name: str) -> str:
    code = (
        "import pyro_seq\n"
        f"try: pyro_seq.get({kind!r}, {name!r})\n"
        "except pyro_seq.plugins.PluginError as error: print(type(error).__name__, error)\n"
    )
    return python(site, "-c", code).stdout


def test_installed_plugin_is_listed_without_being_imported(site: Path) -> None:
    code = "import sys, pyro_seq as p; print(p.available('models'), 'tiny_plugin' in sys.modules)"
    assert python(site, "-c", code).stdout.split(") ") == [
        "('absent', 'dmm', 'group_mixture', 'gtmm', 'hierarchical', 'kvae', 'srnn', 'svg', "
        "'tiny', 'unimportable', 'vrnn'",
        "False\n",
    ]


def test_installed_plugin_is_found_and_meets_the_contracts(site: Path) -> None:
    code = (
        "import torch, pyro_seq\n"
        "from pyro_seq.testing import check_guide, check_model\n"
        "model, guide = pyro_seq.get('models', 'tiny'), pyro_seq.get('guides', 'tiny')\n"
        "x = torch.randn(3, 4, 2)\n"
        "check_model(model, x)\n"
        "check_guide(model, guide, x)\n"
        "print(model.__module__)\n"
    )
    done = python(site, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "tiny_plugin\n"


def test_broken_plugins_are_named_with_their_cause(site: Path) -> None:
    found = lookup_error(site, "models", "unimportable")
    assert found.startswith("BrokenPluginError")
    assert "unimportable = broken_plugin.needs_more:Model" in found
    assert "distribution broken-plugin 0.0.7" in found and "libflux.so.3" in found
    assert "'absent' of kind 'models'" in lookup_error(site, "models", "absent")


def test_installed_collision_names_both_distributions(site: Path) -> None:
    found = lookup_error(site, "dynamics", "constant")
    assert found.startswith("PluginCollisionError")
    assert "broken-plugin 0.0.7" in found and "tiny-plugin 0.3.0" in found


def test_command_line_checks_plugins(site: Path) -> None:
    done = python(site, "-m", "pyro_seq", "list", "engines", "--check")
    assert done.returncode == 0 and done.stdout.startswith("engines: ")
    assert "broken-plugin 0.0.7" in done.stderr and "number" not in done.stdout
