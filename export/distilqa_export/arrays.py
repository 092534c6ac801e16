"""The arrays of the exporter, beside those of `distilqa.text.arrays`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]
