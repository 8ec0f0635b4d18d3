"""The command line."""

from metaopt.cli._main import main

__all__ = ["main"]
