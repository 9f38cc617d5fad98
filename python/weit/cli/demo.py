"""The whole method on real images: pre-train, initialise models of several sizes, compare, write a report.

Without flags: scikit-learn's digits, into ./weit-demo, about 13 minutes on two cores.
"""

from __future__ import annotations

from jsonargparse import Namespace

from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.demo import DemoConfig, run_demo

RESUME = "the same command again goes on where it was, --fresh starts over"


def add_arguments(parser: Parser) -> None:
    add_fields(parser, DemoConfig)


def run(parser: Parser, given: Namespace) -> None:
    run_demo(read_fields(parser, given, DemoConfig), flags_of(given))
