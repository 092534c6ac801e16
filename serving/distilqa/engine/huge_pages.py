"""Huge pages for what this process keeps in memory, its models above all.

A run reads tens of megabytes of weights. In pages of 4 KB it waits for their addresses too, which costs short runs
most, and what the C library allocates has such pages unless it was told otherwise before the process began. Linux puts
them together into pages of 2 MB on demand (``MADV_COLLAPSE``, from 6.1 on).
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

_HUGE = 2 * 2**20
_MADV_COLLAPSE = 25

# Of a huge page, at least this share must be in memory already, so that little is added.
_PRESENT = 0.95

# Private memory that can be written and belongs to no file.
_ANONYMOUS = re.compile(r"([0-9a-f]+)-([0-9a-f]+) rw-p \S+ \S+ 0 *(?:\[heap\])?")


def collapse() -> int:
    """Put what is in memory as a whole into huge pages, and return how many bytes that was: 0 where Linux refuses.

    It takes tenths of a second for a model; runs may go on meanwhile.
    """
    collapsed = 0
    with suppress(OSError, AttributeError, ValueError):  # no Linux, or one that keeps this from us
        advise = ctypes.CDLL(None).madvise
        advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for begin, end in list(_whole()):
            if advise(begin, end - begin, _MADV_COLLAPSE) == 0:
                collapsed += end - begin
    return collapsed


def _whole() -> Iterator[tuple[int, int]]:
    """The addresses, from and to, of what fills huge pages. Raises OSError."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        for line in Path("/proc/self/maps").read_text().splitlines():
            if not (found := _ANONYMOUS.fullmatch(line)):
                continue
            first, last = -(-int(found[1], 16) // _HUGE), int(found[2], 16) // _HUGE
            if first >= last:
                continue
            pages = _HUGE // mmap.PAGESIZE
            pagemap.seek(8 * first * pages)
            entries = np.frombuffer(pagemap.read(8 * (last - first) * pages), np.uint64)
            present = (entries >> np.uint64(63)).reshape(-1, pages).mean(axis=1) >= _PRESENT
            edges = first + np.flatnonzero(np.diff(present, prepend=False, append=False))
            yield from ((int(begin) * _HUGE, int(end) * _HUGE) for begin, end in edges.reshape(-1, 2))
