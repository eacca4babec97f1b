"""Where a prediction is wrong, and how: one code per pixel, with names and colours."""

import numpy as np

# Okabe and Ito's colours, which hold for all common kinds of colour blindness. The last one is the
# gravest: two maps are combined by their maximum.
ERROR_KINDS = (
    ("right, unchanged", (245, 245, 245)),
    ("right, changed", (0, 158, 115)),
    ("wrong class", (240, 228, 66)),
    ("false change", (86, 180, 233)),
    ("missed change", (213, 94, 0)),
)
WRONG_CLASS, FALSE_CHANGE, MISSED_CHANGE = 2, 3, 4


def error_map(prediction: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Compare the maps of one date.

    Args:
        prediction, label: (H, W) uint8 class indices, 0 = unchanged.

    Returns:
        (H, W) uint8, indices of `ERROR_KINDS`.

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != label.shape:
        raise ValueError(f"prediction {prediction.shape} and label {label.shape} differ")
    kinds = (label > 0).astype(np.uint8)
    kinds[(label > 0) & (prediction > 0) & (label != prediction)] = WRONG_CLASS
    kinds[(label == 0) & (prediction > 0)] = FALSE_CHANGE
    kinds[(label > 0) & (prediction == 0)] = MISSED_CHANGE
    return kinds


def draw_errors(kinds: np.ndarray) -> np.ndarray:
    """Colour a map of error kinds: (H, W) uint8 → (H, W, 3) uint8."""
    return np.asarray([color for _, color in ERROR_KINDS], dtype=np.uint8)[kinds]
