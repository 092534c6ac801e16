"""The processor of this machine: its name, its generation, and what it can do in a single instruction.

A cloud's virtual machine says "AMD EPYC" or "Intel Xeon" of very different processors, so the name alone tells little.
"""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")

# The instruction sets by which kernels for fp32 and 8-bit products are chosen, as Linux calls them.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx_vnni_int8", "avx512_bf16", "avx512_fp16", "amx_int8",
             "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve", "sve2")  # fmt: skip

# Those that add 8-bit products in 32 bits. AVX2 alone adds two of them in 16, which may be too few.
_EXACT = {"avx512_vnni", "avx_vnni", "amx_int8"}

# What Apple calls them. Advanced SIMD is in every processor of theirs.
_APPLE_FEATURES = {"FEAT_DotProd": "asimddp", "FEAT_I8MM": "i8mm", "FEAT_BF16": "bf16"}

# AMD's by family and the first model of a range that ends where the next begins, as in Linux's
# arch/x86/kernel/cpu/amd.c.
_AMD = {
    23: {0x00: "Zen", 0x30: "Zen 2", 0x50: "Zen", 0x60: "Zen 2"},
    25: {0x00: "Zen 3", 0x10: "Zen 4", 0x20: "Zen 3", 0x60: "Zen 4"},
    26: {0x00: "Zen 5", 0x50: "Zen 6", 0x60: "Zen 5", 0x80: "Zen 6"},
}

# Intel's of family 6 by model, as in Linux's arch/x86/include/asm/intel-family.h.
_INTEL = {
    "Haswell": (0x3C, 0x3F, 0x45, 0x46),
    "Broadwell": (0x3D, 0x47, 0x4F, 0x56),
    "Skylake": (0x4E, 0x5E, 0x55),
    "Kaby Lake": (0x8E, 0x9E),
    "Comet Lake": (0xA5, 0xA6),
    "Ice Lake": (0x6A, 0x6C, 0x7D, 0x7E),
    "Tiger Lake": (0x8C, 0x8D),
    "Rocket Lake": (0xA7,),
    "Alder Lake": (0x97, 0x9A, 0xBE),
    "Raptor Lake": (0xB7, 0xBA, 0xBF),
    "Meteor Lake": (0xAA, 0xAC),
    "Lunar Lake": (0xBD,),
    "Arrow Lake": (0xC5, 0xC6),
    "Sapphire Rapids": (0x8F,),
    "Emerald Rapids": (0xCF,),
    "Granite Rapids": (0xAD, 0xAE),
    "Sierra Forest": (0xAF,),
}
# Of one model, told apart by the stepping alone.
_SKYLAKE_SERVER, _CASCADE_LAKE, _COOPER_LAKE = 0x55, range(5, 8), range(10, 12)

# Arm's and others' cores by implementer and part, as in Linux's arch/arm64/include/asm/cputype.h.
_ARM = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd09"): "Cortex-A73",
    ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd8e"): "Neoverse-N3",
    ("0xc0", "0xac3"): "Ampere-1",
}
_IMPLEMENTERS = {"0x41": "Arm", "0x61": "Apple", "0x51": "Qualcomm", "0xc0": "Ampere"}


@dataclass(frozen=True, slots=True)
class Processor:
    """What is known of a processor.

    ``name`` is its maker's, of Arm's that of its cores. ``generation`` is the design of an x86 processor, or its family
    and model where that is not known, and empty for others. ``features`` are the instruction sets by which products
    are computed, as Linux names them.
    """

    name: str
    generation: str = ""
    features: tuple[str, ...] = ()

    @property
    def model(self) -> str:
        """The name with the generation."""
        return ", ".join(filter(None, (self.name, self.generation)))

    @property
    def saturates(self) -> bool:
        """Whether the sum of two products of 8-bit numbers may not fit: full 8-bit weights give wrong sums then."""
        return "avx2" in self.features and _EXACT.isdisjoint(self.features)

    def __str__(self) -> str:
        told = "; ".join(filter(None, (self.generation, ", ".join(self.features))))
        return f"{self.name} ({told})" if told else self.name


def read_processor(cpuinfo: Path = _CPUINFO) -> Processor:
    """The processor of this machine, by what Linux or macOS tells of it."""
    try:
        cores = [_fields(core) for core in cpuinfo.read_text(encoding="utf-8", errors="replace").split("\n\n")]
    except OSError:
        return _without_cpuinfo()
    first = next(filter(None, cores), {})
    told = first.get("flags", first.get("Features", "")).split()
    features = tuple(name for name in _FEATURES if name in told)
    if "CPU part" in first:  # a small core beside large ones is another
        parts = (_arm(core) for core in cores if "CPU part" in core)
        return Processor(", ".join(dict.fromkeys(parts)), features=features)
    return Processor(first.get("model name") or platform.machine() or "unknown", _generation(first), features)


def _fields(core: str) -> dict[str, str]:
    pairs = (line.partition(":") for line in core.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _generation(core: Mapping[str, str]) -> str:
    try:
        family, model, stepping = (int(core[name]) for name in ("cpu family", "model", "stepping"))
    except (KeyError, ValueError):
        return ""
    unknown = f"family {family} model {model}"
    if core.get("vendor_id") == "AuthenticAMD":
        return next((name for start, name in reversed(_AMD.get(family, {}).items()) if model >= start), unknown)
    if core.get("vendor_id") == "GenuineIntel" and family == 6:
        if model == _SKYLAKE_SERVER and stepping in _CASCADE_LAKE:
            return "Cascade Lake"
        if model == _SKYLAKE_SERVER and stepping in _COOPER_LAKE:
            return "Cooper Lake"
        return next((name for name, models in _INTEL.items() if model in models), unknown)
    return unknown


def _arm(core: Mapping[str, str]) -> str:
    implementer, part = core.get("CPU implementer", ""), core["CPU part"]
    maker = _IMPLEMENTERS.get(implementer, f"implementer {implementer}")
    return _ARM.get((implementer, part), f"{maker} part {part}")


def _without_cpuinfo() -> Processor:
    brand = _sysctl("machdep.cpu.brand_string").rstrip(b"\0").decode(errors="replace")
    return Processor(brand or platform.processor() or "unknown", features=tuple(_apple_features()))


def _apple_features() -> Iterator[str]:
    if any(_sysctl("hw.optional.arm64")):
        yield "asimd"
        yield from (name for known, name in _APPLE_FEATURES.items() if any(_sysctl(f"hw.optional.arm.{known}")))


def _sysctl(name: str) -> bytes:
    """A value that macOS tells of itself; empty where there is none, or it is another system."""
    size = ctypes.c_size_t(256)
    value = ctypes.create_string_buffer(size.value)
    try:
        failed = ctypes.CDLL(None).sysctlbyname(name.encode(), value, ctypes.byref(size), None, ctypes.c_size_t(0))
    except (AttributeError, OSError, TypeError):  # another C library
        return b""
    return b"" if failed else value.raw[: size.value]
