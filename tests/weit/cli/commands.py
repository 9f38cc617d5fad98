"""How tests call the command line."""

from weit.cli import main

TINY = ["--steps", "4", "--batch-size", "8", "--checkpoint-every", "2", "--log-every", "2"]


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])
