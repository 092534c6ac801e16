"""What the commands have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

TOKEN_VARIABLE = "DISTILQA_TOKEN"


def add_command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int], does: str, **options: Any
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=does, description=f"{does[0].upper()}{does[1:]}.", allow_abbrev=False, **options
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def drop_output() -> None:
    """Let go of what stdout does not take, or Python would try again as it ends, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()


def discard_output() -> None:
    """Let go of stdout, whatever is left to be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
