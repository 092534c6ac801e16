"""Running a bundle's model on the CPU."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

from distilqa.bundle import INT8_PROBE, Bundle
from distilqa.engine.base import SHARED_RUN_TOKENS, SHARED_RUN_WINDOWS, Engine
from distilqa.engine.cores import usable_cores
from distilqa.engine.session import SPIN_US, open_session, run_session
from distilqa.errors import BundleError, InferenceFailed, VariantUnusable
from distilqa.text.arrays import Int64, Logits


class CpuEngine(Engine):
    """A variant of a bundle, ready to run on the CPU.

    ``threads`` is how many cores one run uses, by default all that this process may use. ``concurrent`` is for many
    runs at once: each uses one core, and one that is `alone` uses them all. The constructor verifies the files and
    runs the bundle's self-test; it raises BundleError if a file is damaged, VariantUnusable if this processor
    multiplies 8-bit numbers otherwise or the model gives other logits here than where the bundle was made,
    MissingDependency if ONNX Runtime is missing or doubly installed.
    """

    def __init__(
        self, bundle: Bundle, variant: str | None = None, *, threads: int | None = None, concurrent: bool = False
    ) -> None:
        self.bundle = bundle
        self.variant, description = bundle.variant(variant)
        self.threads = self.lanes = threads or usable_cores()
        # Where 8-bit products are wrong the logits are only a little so, and the probe tries just those.
        if description.precision == "int8" and (problem := run_int8_probe(bundle.verified(INT8_PROBE))):
            raise VariantUnusable(
                f"{bundle.path}: {self.variant} cannot be used on this processor: {problem}. Export the checkpoint"
                " again, which makes one that is right on all, or use another variant (--variant)"
            )
        model = bundle.verified(description.file)
        # Threads belong to a session. A second one takes its weights again, but sharing all cores between runs costs a
        # tenth of the throughput, and a run on one core of two takes 1.7 times as long.
        self._session = open_session(model, threads=1 if concurrent else self.threads, shares_arena=concurrent)
        self._alone = self._session
        if concurrent and self.threads > 1:
            self._alone = open_session(model, threads=self.threads, spin_us=SPIN_US, shares_arena=True)
            self._modes = [False, True]
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._self_test(description)
        _give_back_memory()

    @property
    def device(self) -> str:
        return f"{self.threads} cores"

    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        """As `Engine.run`, of windows of one length.

        Static int8 gives a window the same logits bit for bit whatever else is in the run, and on any number of cores.
        """
        try:
            start, end = run_session(self._alone if alone else self._session, self._inputs, windows)
        except Exception as error:  # ONNX Runtime's own kinds share no base
            raise InferenceFailed(f"the model failed on {len(windows[0])} tokens ({error!r:.200})") from error
        return list(zip(start, end, strict=True))

    def _warm(self) -> None:
        tokens = self.bundle.manifest.window_tokens
        longest = [np.zeros(tokens, np.int64)]
        shared = [np.zeros(min(tokens, SHARED_RUN_TOKENS), np.int64)] * SHARED_RUN_WINDOWS
        self.run(longest, alone=True)
        runs = self.threads if self._alone is not self._session else 1
        with ThreadPoolExecutor(runs) as pool:
            list(pool.map(self.run, [shared] * runs))
            began = time.perf_counter()
            list(pool.map(self.run, [longest] * runs))
            self.token_s = (time.perf_counter() - began) / tokens


def run_int8_probe(probe: Path) -> str:
    """What this processor makes of a saved int8 probe, if that is wrong; empty where its 8-bit products are exact.

    Raises BundleError if the probe is damaged, and MissingDependency.
    """
    session = open_session(probe, threads=1)
    try:
        product, expected = (values.ravel().tolist() for values in session.run(["product", "expected"], {}))
        wrong = [
            f"{one:.0f} instead of {right:.0f}" for one, right in zip(product, expected, strict=True) if one != right
        ]
    except Exception as error:  # whatever it gives; ONNX Runtime's own kinds share no base
        raise BundleError(f"{probe}: cannot be run ({error!r:.200})") from error
    if not expected:
        raise BundleError(f"{probe}: tests nothing")
    return f"it multiplies 8-bit numbers wrongly ({wrong[0]})" if wrong else ""


def _give_back_memory() -> None:
    """Give the system what opening a model took and freed: half of a model's size, which glibc would keep."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
