"""The command line: ``weit demo | pretrain | init | train | compare | bench | doctor``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from weit.cli import bench, compare, demo, doctor, init, pretrain, train
from weit.cli.arguments import Parser
from weit.cli.recipes import recipe_names, with_recipe
from weit.engine.processes import started_together
from weit_kernels import __version__

_COMMANDS = {
    "demo": demo,
    "pretrain": pretrain,
    "init": init,
    "train": train,
    "compare": compare,
    "bench": bench,
    "doctor": doctor,
}
_ALONE = ("demo", "init", "compare", "bench")  # several processes would write over each other
_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for an error, 2 for wrong usage, 130 if interrupted.

    Errors are one line on stderr; ``--debug`` shows where they came from.
    """
    parser = Parser(prog="weit", description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"weit {__version__}")
    commands = parser.add_subcommands(required=False, title="commands", description="Each has its own --help.")
    parsers = {}
    for name, command in _COMMANDS.items():
        parsers[name] = Parser(prog=f"weit {name}", description=command.__doc__, allow_abbrev=False)
        recipes = ", ".join(sorted(recipe_names(name)))
        kept = f", or one of the recipes {recipes}" if recipes else ""
        parsers[name].add_argument(
            "--config", action="config", help=f"YAML file with any of the flags below{kept}; flags beside it win"
        )
        parsers[name].add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.add_arguments(parsers[name])
        commands.add_subcommand(name, parsers[name], help=(command.__doc__ or "").split("\n")[0])
    try:
        given = parser.parse_args(with_recipe(list(sys.argv[1:] if argv is None else argv)))
    except FileNotFoundError as error:
        print(f"weit: {error}", file=sys.stderr)
        return 2
    except UnicodeDecodeError as error:
        print(f"weit: the file that --config names is no text: {error}", file=sys.stderr)
        return 2
    name = given.subcommand
    if name is None:
        parser.print_help()
        return 2
    try:
        if name in _ALONE and started_together() > 1:
            raise RuntimeError(f"it is for one process, but {started_together()} were started together")
        _COMMANDS[name].run(parsers[name], given[name])
    except KeyboardInterrupt:
        print(f"\nweit {name}: interrupted; {_COMMANDS[name].RESUME}", file=sys.stderr)
        return _INTERRUPTED
    except (ArithmeticError, ImportError, OSError, RuntimeError, TypeError, ValueError) as error:
        if given[name].debug:
            traceback.print_exc()
        print(f"weit {name}: {_one_line(error)}", file=sys.stderr)
        return 1
    return 0


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError) and error.strerror:  # without the number that Python puts in front
        text = error.strerror if error.filename is None else f"{error.strerror}: {error.filename}"
    return " ".join(text.split()) or type(error).__name__
