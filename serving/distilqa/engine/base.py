"""What every engine is: one variant of a bundle that has proved itself, and runs windows."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from distilqa.bundle import SELF_TEST, Bundle, Variant
from distilqa.errors import BundleError, InferenceFailed, VariantUnusable
from distilqa.text.arrays import Int64, Logits

# Windows of one length share a run up to this length and number: beyond it a shared run costs what single runs cost.
SHARED_RUN_TOKENS = 64
SHARED_RUN_WINDOWS = 8

# A run on a GPU has no more windows, so that what tells of them has its place in memory from the start.
RUN_WINDOWS = 1024


class Engine(ABC):
    """One variant of a bundle, ready to run; safe to use from several threads at once.

    ``lanes`` is how many runs it takes at once. Windows of one length may share a run, up to 64 tokens, and of any
    lengths where it has a ``budget`` of tokens. ``token_s`` is how many seconds a token took in runs of full length,
    with as many under way as may be. Who makes one calls `_self_test` when it can run; that raises BundleError and
    VariantUnusable.
    """

    bundle: Bundle
    variant: str
    lanes: int
    token_s: float
    budget: int | None = None

    # How a run may be made, as `run` has it: `alone` or not. The self-test tries each.
    _modes: Sequence[bool] = (False,)

    @property
    @abstractmethod
    def device(self) -> str:
        """What it runs on, for people."""

    @abstractmethod
    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        """Run windows, each (length,) int64, and return (start, end) logits, each (length,) float32.

        ``alone`` says that no other run is under way. Raises InferenceFailed.
        """

    @abstractmethod
    def _warm(self) -> None:
        """Take the memory for as many of the largest runs as may be under way at once, before the first caller comes.

        Sets ``token_s``. Raises InferenceFailed.
        """

    def _self_test(self, variant: Variant) -> None:
        content = self.bundle.verified(SELF_TEST).read_bytes()
        try:
            differences = self._differences(json.loads(content))
        except Exception as error:  # whatever it holds; ONNX Runtime's own kinds share no base
            raise BundleError(
                f"{self.bundle.path}: the self-test of {self.variant} cannot be run ({error!r:.200})"
            ) from error
        if not differences:
            raise BundleError(f"{self.bundle.path}: {SELF_TEST} tests nothing")
        try:
            self._warm()
        except InferenceFailed as error:
            raise BundleError(f"{self.bundle.path}: {self.variant} has no room for window_tokens: {error}") from error
        for difference in differences:
            if not difference <= variant.tolerance:
                raise VariantUnusable(
                    f"{self.bundle.path}: the self-test of {self.variant} failed: logits differ by {difference:.3g}"
                    f" from those of the machine that made the bundle ({variant.tolerance:.3g} is allowed). It is"
                    f" another model than was checked, or this processor computes it wrongly; export it here, or use"
                    f" another variant (--variant)"
                )

    def _differences(self, test: Any) -> list[float]:
        """The largest difference from the expected logits, of each input of the self-test."""
        if not all(test["inputs"]):
            raise ValueError("an input has no tokens")  # for which no kernel is made
        return [
            float(np.abs(np.array(self.run([np.array(ids, np.int64)], alone=alone)[0]) - np.array(logits, "f4")).max())
            for ids, logits in zip(test["inputs"], test["logits"][self.variant], strict=True)
            for alone in self._modes
        ]
