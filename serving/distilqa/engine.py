"""ONNX Runtime sessions, on the CPU here, on a GPU in `distilqa.cuda`. Nothing else knows ONNX Runtime."""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distilqa.bundle import GPU_VARIANTS, INT8_PROBE, SELF_TEST, VARIANTS, Bundle, Variant
from distilqa.errors import BundleError, InferenceFailed, MissingDependency, VariantUnusable
from distilqa.spans import Float32, Logits
from distilqa.windows import Int64

if TYPE_CHECKING:
    import onnxruntime

CUDA_PROVIDER = "CUDAExecutionProvider"

# Windows of one length share a run up to this length and number: beyond it a shared run costs what single runs cost.
SHARED_RUN_TOKENS = 64
SHARED_RUN_WINDOWS = 8

# A run on a GPU has no more windows, so that what tells of them has its place in memory from the start.
RUN_WINDOWS = 1024

# Of a request that finds a GPU busy with many others.
OBJECTIVE_S = 0.02

# More than any processor has cores; a session with far more threads would not come up.
MAX_THREADS = 512

# Long enough for the gaps between the operators of a run, in which a sleeping thread would cost 3 ms of 20; far shorter
# than ONNX Runtime's own, which burns 15 ms of a core after each run.
SPIN_US = 1000

# It would tell its makers of each session, and keep an identifier and a database in the user's home. Read when it is
# first imported, and what the user has set counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = "pip install 'distilqa[cpu]'"

logger = logging.getLogger(__name__)


def open_engine(
    bundle: Bundle, variant: str | None = None, *, unverified: bool = False, objective_s: float = OBJECTIVE_S,
    **options: Any,
) -> Engine:  # fmt: skip
    """The engine for a variant of a bundle: the one for a GPU, or for the CPU, which takes the ``options``.

    Where no variant is named and this processor computes the fastest wrongly, it is the next, and a warning in the log
    of this module says so. ``unverified`` allows a variant that was never run on the kind of device that it is for.
    Raises BundleError, VariantUnusable and MissingDependency as they do.
    """
    # One for a GPU alone: that says what is missing here.
    name, description = bundle.variant(variant, (*usable_variants(), *GPU_VARIANTS))
    if not description.verified and not unverified:
        raise BundleError(
            f"{bundle.path}: {name} is unverified: no GPU ran it when it was made. Export it where there is one, or"
            " allow it: distilqa serve has --unverified allow, a Reader unverified=True"
        )
    if name in GPU_VARIANTS:
        from distilqa.cuda import CudaEngine  # which is made of what is here

        return CudaEngine(bundle, name, objective_s=objective_s)
    if variant is not None:
        return Engine(bundle, name, **options)
    return _open_usable(bundle, [one for one in VARIANTS if one in bundle.manifest.variants], options)


def _open_usable(bundle: Bundle, names: Sequence[str], options: Mapping[str, Any]) -> Engine:
    """The engine for the first of these variants that this processor computes rightly; damage is no reason for another.

    Raises as `Engine` does, for the first of them where none can be used.
    """
    problem = ""  # the error itself would keep its model in memory
    for name in names:
        try:
            engine = Engine(bundle, name, **options)
        except VariantUnusable as error:
            problem = problem or str(error)
        except BundleError as error:
            if problem:
                raise BundleError(f"{problem}. And {error}") from error
            raise
        else:
            if problem:
                logger.warning("%s. %s is used instead; --variant %s asks for it by name", problem, name, name)
            return engine
    raise VariantUnusable(problem)


def usable_variants() -> Sequence[str]:
    """Those for the ONNX Runtime that is installed, the fastest first. Raises MissingDependency."""
    gpu = CUDA_PROVIDER in import_onnxruntime().get_available_providers()
    return (*GPU_VARIANTS, *VARIANTS) if gpu else VARIANTS


class Engine:
    """One variant of a bundle, ready to run; safe to use from several threads at once.

    ``threads`` is how many cores one run uses, by default all that this process may use. ``concurrent`` is for many
    runs at once: each uses one core, and one that is `alone` uses them all. ``token_s`` is how many seconds a token
    took in runs of full length, with as many under way as may be. The constructor verifies the files and runs the
    bundle's self-test; it raises BundleError if a file is damaged, VariantUnusable if this processor multiplies 8-bit
    numbers otherwise or the model gives other logits here than where the bundle was made, MissingDependency if ONNX
    Runtime is missing or doubly installed.

    ``lanes`` is how many runs it takes at once. Windows of one length may share a run, up to 64 tokens, and of any
    lengths where it has a ``budget`` of tokens.
    """

    budget: int | None = None

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
        self._alone, self._ways = self._session, [False]
        if concurrent and self.threads > 1:
            self._alone = open_session(model, threads=self.threads, spin_us=SPIN_US, shares_arena=True)
            self._ways = [False, True]
        self._inputs = [node.name for node in self._session.get_inputs()]
        self._self_test(description)
        _give_back_memory()

    @property
    def device(self) -> str:
        """What it runs on, for people."""
        return f"{self.threads} cores"

    def run(self, windows: Sequence[Int64], *, alone: bool = False) -> list[Logits]:
        """Run windows of one length, each (length,) int64, and return (start, end) logits, each (length,) float32.

        ``alone`` says that no other run is under way. Static int8 gives a window the same logits bit for bit whatever
        else is in the run, and on any number of cores. Raises InferenceFailed.
        """
        try:
            start, end = run_session(self._alone if alone else self._session, self._inputs, windows)
        except Exception as error:  # ONNX Runtime's own kinds share no base
            raise InferenceFailed(f"the model failed on {len(windows[0])} tokens ({error!r:.200})") from error
        return list(zip(start, end, strict=True))

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

    def _warm(self) -> None:
        """Take the memory for as many of the largest runs as may be under way at once, before the first caller comes.

        Raises InferenceFailed.
        """
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

    def _differences(self, test: Any) -> list[float]:
        """The largest difference from the expected logits, of each input of the self-test."""
        if not all(test["inputs"]):
            raise ValueError("an input has no tokens")  # on which 8-bit kernels divide by zero
        return [
            float(np.abs(np.array(self.run([np.array(ids, np.int64)], alone=alone)[0]) - np.array(logits, "f4")).max())
            for ids, logits in zip(test["inputs"], test["logits"][self.variant], strict=True)
            for alone in self._ways
        ]


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


def open_session(
    model: Path, *, threads: int, spin_us: int = 0, shares_arena: bool = False
) -> onnxruntime.InferenceSession:
    """Open a model that was fused offline, exactly as it is: ONNX Runtime's own fusions would slow it down.

    ``spin_us`` is for how many microseconds a thread that has nothing to do looks out for more, before it sleeps.
    ``shares_arena`` lets sessions work in one pool of memory, which takes 30 MB less than a pool for each of two.
    Raises BundleError if it is no model that this ONNX Runtime can open, MissingDependency.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Of patterns, one for each length that ever came, memory would grow without end.
    options.enable_mem_pattern = False
    # A spinning pool burns the cores that other runs, and the server itself, could use.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin_us else "0")
    if spin_us:
        options.add_session_config_entry("session.intra_op.spin_duration_us", str(spin_us))
    options.log_severity_level = 3
    if shares_arena:
        _register_arena()
        options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own kinds share no base
        raise BundleError(f"{model}: ONNX Runtime cannot open it ({error})") from error


@cache
def _register_arena() -> None:
    """Once for the process; one that others have registered will do as well."""
    ort = import_onnxruntime()
    cpu = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    with suppress(Exception):  # ONNX Runtime's own kinds share no base
        ort.create_and_register_allocator(cpu, ort.OrtArenaCfg({"max_mem": 0}))


def run_session(
    session: onnxruntime.InferenceSession,
    inputs: Sequence[str],
    windows: Sequence[Int64],
    outputs: Sequence[str] = ("start_logits", "end_logits"),
) -> list[Float32]:
    """Run windows of one length and return the outputs, each (windows, length, ...) float32.

    A model of BERT's also takes ``token_type_ids``: 1 from the first token after the question's [SEP] on.
    """
    input_ids = np.stack(windows)
    feeds = {"input_ids": input_ids}
    if "token_type_ids" in inputs:
        feeds["token_type_ids"] = token_types(input_ids)
    values: list[Float32] = session.run(outputs, feeds)
    return values


def token_types(input_ids: Int64) -> Int64:
    """BERT's segments, (windows, length) int64: 0 up to and with the question's [SEP], 1 after it.

    The last token of a window is [SEP] too, so its first occurrence ends the question.
    """
    separator = input_ids[:, -1:]
    found: Int64 = np.cumsum(input_ids == separator, axis=1, dtype=np.int64)
    return np.where(input_ids == separator, found > 1, found > 0).astype(np.int64)


def import_onnxruntime() -> Any:
    """Import ONNX Runtime. Raises MissingDependency if neither of its packages is installed, or both are."""
    found = [name for name in _PACKAGES if _installed(name)]
    if len(found) == 2:
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; keep one:"
            f" pip uninstall -y onnxruntime onnxruntime-gpu && {_INSTALL} (or distilqa[gpu])"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"ONNX Runtime is not installed: {_INSTALL} (or distilqa[gpu])") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left where one of two was taken away
        raise MissingDependency(
            f"ONNX Runtime is damaged: pip uninstall -y onnxruntime onnxruntime-gpu && {_INSTALL} (or distilqa[gpu])"
        )
    return onnxruntime


def runtime_package() -> str:
    """The name of the ONNX Runtime that is installed. Raises MissingDependency as `import_onnxruntime` does."""
    import_onnxruntime()
    return next(name for name in _PACKAGES if _installed(name))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _give_back_memory() -> None:
    """Give the system what opening a model took and freed: half of a model's size, which glibc would keep."""
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def usable_cores() -> int:
    """How many cores this process may use: its affinity, cut down to the CPU quota of its control groups."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, cores if quota is None else min(cores, int(quota)))


def _cgroup_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """The least CPU quota, in cores, of this process's control group (v2, or v1) and those above it."""
    quotas = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        v1 = "cpu" in controllers.split(",")
        if controllers and not v1:
            continue
        base = root / controllers if v1 else root
        group = base / path.lstrip("/")
        for directory in (group, *group.parents):
            quotas.append(_quota_v1(directory) if v1 else _quota_v2(directory))
            if directory == base:
                break
    return min((quota for quota in quotas if quota), default=None)


def _quota_v2(directory: Path) -> float | None:
    limit, _, period = _read(directory / "cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdigit() else None


def _quota_v1(directory: Path) -> float | None:
    limit, period = _read(directory / "cpu.cfs_quota_us").strip(), _read(directory / "cpu.cfs_period_us").strip()
    return int(limit) / int(period) if limit.isdigit() and period else None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
