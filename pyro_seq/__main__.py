"""The command line: ``python -m pyro_seq list [KIND]`` and ``python -m pyro_seq info``."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import sys
from collections.abc import Sequence

from pyro_seq import __version__, available, kinds

_PACKAGES = ("torch", "pyro-ppl", "numpy", "arviz", "matplotlib", "funsor", "tensorboard")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _list(kind: str | None, check: bool) -> None:
    for each in (kind,) if kind else kinds():
        print(f"{each}: {', '.join(available(each, check=check)) or '-'}")


def _info() -> None:
    import torch

    rows = {"pyro-seq": __version__, "python": platform.python_version()}
    rows |= {package: _version(package) for package in _PACKAGES}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    rows |= {"cuda devices": ", ".join(devices) or "none", "threads": str(torch.get_num_threads())}
    for name, value in rows.items():
        print(f"{name:<13} {value}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(
        prog="python -m pyro_seq", description="What pyro_seq can find, by name."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="names in the registries, plugins included")
    listing.add_argument("kind", nargs="?", choices=kinds(), help="one kind only")
    listing.add_argument(
        "--check", action="store_true", help="import each part and warn of those that fail"
    )
    commands.add_parser("info", help="versions and devices, for a bug report")
    options = parser.parse_args(arguments)
    if options.command == "list":
        _list(options.kind, options.check)
    else:
        _info()
    return 0


if __name__ == "__main__":
    sys.exit(main())
