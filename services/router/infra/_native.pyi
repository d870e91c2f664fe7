import numpy as np
from numpy.typing import NDArray

def byte_products(rows: NDArray[np.int8], asked: NDArray[np.int16], products: NDArray[np.int32], /) -> None: ...
