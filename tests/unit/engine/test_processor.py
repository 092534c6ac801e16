"""What is read of a processor: processors that differ in what they can do are told apart."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path
from typing import Any, ClassVar

import pytest

from distilqa.engine.processor import Processor, read_processor

VNNI = "fpu avx2 fma avx512f avx512_vnni"


def x86(family: int, model: int, stepping: int = 1, *, flags: str = "fpu avx2 fma", maker: str = "GenuineIntel") -> str:
    core = (
        f"vendor_id\t: {maker}\ncpu family\t: {family}\nmodel\t\t: {model}\nmodel name\t: A processor\n"
        f"stepping\t: {stepping}\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n"
    )
    return f"processor\t: 0\n{core}\nprocessor\t: 1\n{core}\n"


def arm(*parts: str, implementer: str = "0x41", features: str = "fp asimd crc32") -> str:
    """A core of each part."""
    cores = (
        f"processor\t: {number}\nFeatures\t: {features}\nCPU implementer\t: {implementer}\nCPU variant\t: 0x0\n"
        f"CPU part\t: {part}\n"
        for number, part in enumerate(parts)
    )
    return "\n".join((*cores, "Hardware\t: BCM2835\nModel\t\t: Raspberry Pi 4 Model B Rev 1.4\n"))


def read(cpuinfo: str, folder: Path) -> Processor:
    path = folder / "cpuinfo"
    path.write_text(cpuinfo)
    return read_processor(path)


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [
        (23, 0x01, "Zen"),
        (23, 0x31, "Zen 2"),
        (23, 0x71, "Zen 2"),
        (25, 0x01, "Zen 3"),
        (25, 0x50, "Zen 3"),
        (25, 0x11, "Zen 4"),
        (25, 0x61, "Zen 4"),
        (25, 0xA0, "Zen 4"),
        (26, 0x02, "Zen 5"),
        (26, 0x44, "Zen 5"),
        (99, 0x01, "family 99 model 1"),
    ],
)
def test_generations_of_amd(family: int, model: int, generation: str, tmp_path: Path) -> None:
    found = read(x86(family, model, maker="AuthenticAMD"), tmp_path)
    assert (found.name, found.generation) == ("A processor", generation)


@pytest.mark.parametrize(
    ("model", "stepping", "generation"),
    [
        (0x3F, 2, "Haswell"),
        (0x4F, 1, "Broadwell"),
        (0x55, 4, "Skylake"),
        (0x55, 7, "Cascade Lake"),
        (0x55, 11, "Cooper Lake"),
        (0x6A, 6, "Ice Lake"),
        (0x8F, 8, "Sapphire Rapids"),
        (0xCF, 2, "Emerald Rapids"),
        (0xAD, 1, "Granite Rapids"),
        (1, 1, "family 6 model 1"),
    ],
)
def test_generations_of_intel(model: int, stepping: int, generation: str, tmp_path: Path) -> None:
    assert read(x86(6, model, stepping), tmp_path).generation == generation


def test_other_makers_are_not_taken_for_those(tmp_path: Path) -> None:
    assert read(x86(6, 0x8F, maker="CentaurHauls"), tmp_path).generation == "family 6 model 143"


@pytest.mark.parametrize(
    ("cpuinfo", "told"),
    [
        (x86(25, 0x11, flags=VNNI, maker="AuthenticAMD"), "A processor (Zen 4; avx2, avx512f, avx512_vnni)"),
        (x86(25, 0x01, maker="AuthenticAMD"), "A processor (Zen 3; avx2)"),
        ("model name\t: A processor\nflags\t\t: fpu sse4_1\n", "A processor"),
        (
            "model name\t: A processor\nvendor_id\t: X\ncpu family\t: 6\nmodel\t: 1\nstepping\t: unknown\n",
            "A processor",
        ),
        (arm("0xd08", "0xd08"), "Cortex-A72 (asimd)"),
        (arm("0xd0b", "0xd05", "0xd05", features="asimd asimddp"), "Cortex-A76, Cortex-A55 (asimd, asimddp)"),
        (arm("0xd40", features="asimd asimddp sve i8mm bf16"), "Neoverse-V1 (asimd, asimddp, i8mm, bf16, sve)"),
        (arm("0xfff"), "Arm part 0xfff (asimd)"),
        (arm("0x022", implementer="0x61"), "Apple part 0x022 (asimd)"),
        (arm("0x001", implementer="0x99"), "implementer 0x99 part 0x001 (asimd)"),
    ],
)
def test_what_is_told(cpuinfo: str, told: str, tmp_path: Path) -> None:
    assert str(read(cpuinfo, tmp_path)) == told


def test_one_that_tells_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as POWER's, whose kernel has other fields."""
    monkeypatch.setattr(platform, "machine", lambda: "ppc64le")
    assert str(read("processor\t: 0\ncpu\t: POWER9, altivec supported\n", tmp_path)) == "ppc64le"


@pytest.mark.parametrize(
    ("flags", "saturates"),
    [
        ("fpu avx2 fma", True),
        ("fpu avx2 avx512f avx512_bf16", True),
        (VNNI, False),
        ("fpu avx2 avx_vnni", False),
        ("fpu avx2 avx512f amx_int8", False),
        ("fpu sse4_1", False),
    ],
)
def test_8_bit_products_saturate_where_avx2_has_no_vnni(flags: str, saturates: bool, tmp_path: Path) -> None:
    assert read(x86(6, 0x55, flags=flags), tmp_path).saturates is saturates
    assert not read(arm("0xd08"), tmp_path).saturates


def test_the_model_is_short(tmp_path: Path) -> None:
    assert read(x86(25, 1, maker="AuthenticAMD"), tmp_path).model == "A processor, Zen 3"
    assert read(arm("0xd0c"), tmp_path).model == "Neoverse-N1"


class MacLibrary:
    """The part of a Mac's C library that is asked."""

    values: ClassVar = {
        b"machdep.cpu.brand_string": b"Apple M2 Pro\0",
        b"hw.optional.arm64": b"\1\0\0\0",
        b"hw.optional.arm.FEAT_DotProd": b"\1\0\0\0",
        b"hw.optional.arm.FEAT_I8MM": b"\0\0\0\0",
    }

    def sysctlbyname(self, name: bytes, value: Any, size: Any, new: None, new_size: ctypes.c_size_t) -> int:
        if name not in self.values:
            return -1
        ctypes.memmove(value, self.values[name], len(self.values[name]))
        size._obj.value = len(self.values[name])
        return 0


def test_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: MacLibrary())
    assert str(read_processor(tmp_path / "missing")) == "Apple M2 Pro (asimd, asimddp)"


@pytest.mark.parametrize("name", ["Intel64 Family 6 Model 143 Stepping 8, GenuineIntel", ""])
def test_another_system(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "processor", lambda: name)
    assert str(read_processor(tmp_path / "missing")) == (name or "unknown")


def test_this_one_is_known() -> None:
    assert read_processor().name not in ("", "unknown")
