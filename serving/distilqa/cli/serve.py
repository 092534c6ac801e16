"""``distilqa serve``: serve a bundle over gRPC."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from distilqa.cli.commands import TOKEN_VARIABLE, Commands, add_command, discard_output
from distilqa.server import not_installed

# The groups in which `serve --help` shows the settings, by the first of each.
_SETTING_GROUPS = {
    "bundle": "the model",
    "host": "who may call, and where",
    "threads": "how much it takes",
    "drain_s": "stopping and logging",
}


def add(commands: Commands) -> None:
    _add_settings(add_command(commands, "serve", _run, "serve a bundle over gRPC"))


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each server setting. Their values are checked where the settings are made."""
    try:
        from distilqa.server.settings import ENV_PREFIX, ServerSettings, flag
    except ImportError as error:
        parser.add_argument("bundle", nargs="?", metavar="BUNDLE")
        parser.set_defaults(any_flags=True)  # of which `serve` itself says what is missing
        parser.epilog = f"The settings are not shown: {not_installed(error)}"
        return
    parser.epilog = (
        f"Each setting is a flag, an environment variable ({ENV_PREFIX}MAX_REQUESTS=64), or a key of the TOML file"
        " (max_requests = 64); of several the first counts. Relative paths, also those in the file, start at the"
        " current directory."
    )
    parser.add_argument("--config", metavar="FILE", help=f"TOML file of settings ({ENV_PREFIX}CONFIG)")
    parser.add_argument(
        "--print-settings", action="store_true", help="print all settings and their sources, as such a file, and exit"
    )
    group: argparse._ActionsContainer = parser
    for name, field in ServerSettings.model_fields.items():
        if name in _SETTING_GROUPS:
            group = parser.add_argument_group(_SETTING_GROUPS[name])
        default = "" if field.default is None or field.is_required() else f"default {field.default}, "
        described = f"{field.description} ({default}{ENV_PREFIX}{name.upper()})"
        if field.is_required():
            group.add_argument(name, nargs="?", metavar=flag(name), help=described)
        else:
            group.add_argument(flag(name), metavar=_metavar(name, field.annotation), help=described)


def _metavar(name: str, annotation: Any) -> str:
    """What stands for a setting's value, by its type."""
    kinds = get_args(annotation) or (annotation,)
    if get_origin(annotation) is Literal:
        return f"{{{','.join(kinds)}}}"
    if Path in kinds:
        return "FILE"
    if int in kinds:
        return "N"
    if float in kinds:
        return "SECONDS" if name.endswith("_s") else "NUMBER"
    return "HOST" if name == "host" else "VALUE"


def _run(arguments: argparse.Namespace) -> int:
    # The pools of threads that libraries bring would only take the cores from the model's.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # or gRPC would talk on stderr of what our errors say
    try:
        from distilqa.server.app import Server, serve
        from distilqa.server.logs import logging_to
        from distilqa.server.settings import load_settings
    except ImportError as error:
        raise not_installed(error) from error
    given = {name: value for name, value in vars(arguments).items() if name not in ("run", "parser", "print_settings")}
    settings = load_settings(given)
    if arguments.print_settings:
        print(settings.to_toml(), end="")
        return 0

    def announce(server: Server) -> None:
        token = f"{TOKEN_VARIABLE}=... " if settings.credentials else ""
        tls = " --tls" if settings.tls_certificate else ""
        text = (
            f"Serving {server.description} on {server.address}. Ask it from another terminal:\n\n"
            f"    echo 'The quick brown fox jumps over the lazy dog.' | {token}{_own_name()} ask"
            f" 'What does the fox jump over?' --passage - --target {server.address}{tls}\n"
        )
        if tls:
            text += (
                "\nFor a certificate that no public authority has signed, --root-certificates FILE takes the place of"
                " --tls.\n"
            )
        threading.Thread(target=_tell, args=(text,), daemon=True).start()

    with logging_to(sys.stderr.fileno(), form=settings.log_format, level=settings.log_level):
        asyncio.run(serve(settings, announce))
    return 0


def _tell(text: str) -> None:
    """Write to stdout, past its lock: who does not read it, or has left, neither ends a server nor holds one up."""
    content = f"{text}\n".encode(errors="replace")
    try:
        while content:
            content = content[os.write(sys.stdout.fileno(), content) :]
    except OSError:
        discard_output()  # or Python would try again as it ends


def _own_name() -> str:
    """This program, as the user can type it again."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py":
        return "python -m distilqa"
    try:
        return str(own.relative_to(Path.cwd())) if own.is_absolute() else str(own)
    except (ValueError, OSError):  # it is elsewhere, or the current directory is gone
        return own.name
