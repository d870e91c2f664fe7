import numpy as np
from numpy.typing import NDArray

def gram_ids(points: NDArray[np.uint32], ids: NDArray[np.uint16], /) -> int: ...
def lexical_scores(
    ids: NDArray[np.uint16],
    counts: NDArray[np.uint8],
    width: int,
    scales: NDArray[np.float32],
    commons: NDArray[np.float32],
    places: NDArray[np.int64],
    asked: NDArray[np.uint16],
    weight_of: NDArray[np.float32],
    common_of: NDArray[np.float32],
    scores: NDArray[np.float64],
    /,
) -> None: ...
def contest(
    entrants: list[tuple[NDArray[np.uint16], NDArray[np.uint32], NDArray[np.float64]]],
    asked: NDArray[np.uint16],
    weights: NDArray[np.float32],
    weight_of: NDArray[np.float32],
    least: float,
    least_gain: float,
    whose: NDArray[np.int64],
    figures: NDArray[np.float64],
    joint: NDArray[np.float64],
    least_own: NDArray[np.float64],
    /,
) -> int: ...
