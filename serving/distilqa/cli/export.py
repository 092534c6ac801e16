"""``distilqa export``: make a bundle of a PyTorch checkpoint."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from distilqa.bundle import GPU_VARIANTS, VARIANTS
from distilqa.cli.commands import Commands, add_command
from distilqa.errors import MissingDependency
from distilqa.wording import installing


def add(commands: Commands) -> None:
    export = add_command(commands, "export", _run, "make a bundle of a PyTorch checkpoint")
    export.add_argument("checkpoint", metavar="CHECKPOINT", help="a local folder, or a hub id")
    export.add_argument("-o", "--output", type=Path, required=True, metavar="BUNDLE", help="directory to write")
    export.add_argument(
        "--variant",
        action="append",
        choices=(*VARIANTS, *GPU_VARIANTS),
        help=f"which to make; may be repeated (default: {' and '.join(VARIANTS)}; {', '.join(GPU_VARIANTS)} is for an"
        " NVIDIA GPU)",
    )
    export.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="JSON lines with question and context to choose the int8 scales on (default: a packaged sample of SQuAD)",
    )  # fmt: skip
    export.add_argument(
        "--eval", type=Path, metavar="FILE",
        help="SQuAD v1.1 file to judge int8 and fp16 on (default: 3,000 packaged questions of SQuAD's development set)",
    )  # fmt: skip
    export.add_argument(
        "--max-f1-drop", type=float, metavar="POINTS",
        help="F1 that int8 or fp16 may lose against fp32; matmuls of int8 stay fp32 where it must be (default 0.5)",
    )  # fmt: skip
    export.add_argument("--revision", help="branch, tag or commit on the hub")
    export.add_argument("--overwrite", action="store_true", help="replace a bundle that is there")


def _run(arguments: argparse.Namespace) -> int:
    # PyTorch's libraries talk on stderr; what they say is not about this command.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    began = time.monotonic()

    def progress(step: str) -> None:
        print(f"[{time.monotonic() - began:5.1f} s] {step}", file=sys.stderr, flush=True)

    try:
        from distilqa_export import samples
        from distilqa_export.checkpoint_files import find_checkpoint
        from distilqa_export.writing.staging import refuse_unless_replaceable

        # What cannot be is said before PyTorch is imported, which takes seconds.
        refuse_unless_replaceable(arguments.output, arguments.overwrite)
        if arguments.eval:
            samples.read_evaluation(arguments.eval)
        if arguments.calibration:
            samples.read_calibration(arguments.calibration)
        progress(f"find {arguments.checkpoint}")
        files = find_checkpoint(arguments.checkpoint, arguments.revision)
        from distilqa_export.export import MAX_F1_DROP, export
    except ImportError as error:
        raise MissingDependency(
            f"the exporter is not installed: {installing('export,cpu')} (or gpu for cpu; {error})"
        ) from error
    with _exit_on_sigterm():
        manifest = export(
            files,
            arguments.output,
            variants=arguments.variant or VARIANTS,
            calibration=arguments.calibration,
            evaluation=arguments.eval,
            max_f1_drop=MAX_F1_DROP if arguments.max_f1_drop is None else arguments.max_f1_drop,
            overwrite=arguments.overwrite,
            progress=progress,
        )
    for name, variant in manifest.variants.items():
        measured = ", ".join(f"{measure} {text}" for measure, text in variant.shown().items())
        unverified = "" if variant.verified else "unverified, "
        print(f"{name}: {unverified}{manifest.files[variant.file].bytes / 1e6:.1f} MB, {measured}")
    print(f"wrote {arguments.output}")
    if left := [name for name, variant in manifest.variants.items() if not variant.verified]:
        print(f"{', '.join(left)}: export it where there is a GPU, or serve it with --unverified allow")
    return 0


@contextmanager
def _exit_on_sigterm() -> Iterator[None]:
    """SIGTERM leaves the block as an exception, so that what is half done is cleared away."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
