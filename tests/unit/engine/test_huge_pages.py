"""What fills huge pages is put into them, what does not stays as it is, and a kernel that refuses is no error."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from distilqa.engine import huge_pages

HUGE = 2 * 2**20


@pytest.fixture
def memory() -> Iterator[tuple[mmap.mmap, int]]:
    """Twenty huge pages that nothing was written to, and the address of the first of them that is aligned."""
    region = mmap.mmap(-1, 20 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    region.madvise(mmap.MADV_NOHUGEPAGE)  # or a byte would bring a whole one where Linux always gives them
    first = ctypes.c_char.from_buffer(region)
    address = ctypes.addressof(first)
    del first
    yield region, -address % HUGE
    region.close()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """What Linux is asked for, and grants: address, length, advice."""
    found: list[tuple[int, int, int]] = []

    class Advise:
        def __call__(self, *arguments: int) -> int:
            found.append(arguments)  # type: ignore[arg-type]
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(madvise=Advise()))
    return found


def test_only_what_fills_huge_pages_is_put_into_them(
    memory: tuple[mmap.mmap, int], asked: list[tuple[int, int, int]]
) -> None:
    region, begin = memory
    start = ctypes.addressof(ctypes.c_char.from_buffer(region)) + begin

    for page, share in ((2, 1.0), (3, 0.96), (5, 0.9), (7, 1.0)):
        region.seek(begin + page * HUGE)
        region.write(b"x" * int(HUGE * share))
    collapsed = huge_pages.collapse()
    within = [(address - start, length) for address, length, _ in asked if 0 <= address - start < 10 * HUGE]
    assert within == [(2 * HUGE, 2 * HUGE), (7 * HUGE, HUGE)]
    assert collapsed == sum(length for _, length, _ in asked)
    assert {advice for _, _, advice in asked} == {25}


def test_memory_keeps_what_is_in_it() -> None:
    content = bytes(range(256)) * (4 * HUGE // 256)
    kept = bytearray(content)
    assert huge_pages.collapse() % HUGE == 0
    assert kept == content


def refuse(*_: Any) -> Any:
    raise OSError("no such library")


class Refusing:
    def __call__(self, *_: int) -> int:
        return -1


@pytest.mark.parametrize(
    "library", [refuse, lambda name: SimpleNamespace(), lambda name: SimpleNamespace(madvise=Refusing())]
)
def test_a_system_that_refuses_is_no_error(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", library)
    assert huge_pages.collapse() == 0
