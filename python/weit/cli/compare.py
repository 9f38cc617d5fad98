"""Train models of several sizes from several starts, and write table, curves and report."""

from __future__ import annotations

from jsonargparse import Namespace

from weit.cli.arguments import Parser, add_fields, flags_of, read_fields
from weit.compare import CompareConfig, compare
from weit.report import table, verdicts, write_report

RESUME = "the same command again goes on where it was"


def add_arguments(parser: Parser) -> None:
    add_fields(parser, CompareConfig)


def run(parser: Parser, given: Namespace) -> None:
    comparison = compare(read_fields(parser, given, CompareConfig), flags=flags_of(given))
    report = write_report(comparison, comparison.config.out)
    print(table(comparison), "", *verdicts(comparison), f"Report: {report}", sep="\n")
