"""The arrays that go from hand to hand: token ids, and logits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]
Float32 = npt.NDArray[np.float32]

# One window's (start_logits, end_logits), each (length,).
Logits = tuple[Float32, Float32]
