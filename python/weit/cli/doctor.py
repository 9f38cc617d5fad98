"""What this machine can run, and why not the rest."""

from __future__ import annotations

from jsonargparse import Namespace

from weit.cli.arguments import Parser
from weit.doctor import examine

RESUME = "nothing was changed"


def add_arguments(parser: Parser) -> None:
    """There are no flags."""


def run(parser: Parser, given: Namespace) -> None:
    for title, lines in examine().items():
        print(title)
        for name, finding in lines.items():
            print(f"  {name:<18}{finding}")
