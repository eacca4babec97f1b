"""How images of any bands and depth are shown: contact sheets, reports, TensorBoard."""

import numpy as np

SHOWN_PERCENT = (2, 98)


def to_rgb(values: np.ndarray) -> np.ndarray:
    """Show an image of any number of bands and bits: (H, W, bands) → (H, W, 3) uint8.

    One or two bands are shown as grey, of more the first three. 8-bit values stay as they are;
    others are stretched band by band, from the 2nd to the 98th percentile of this very image, so
    that brightness cannot be compared between two pictures.
    """
    shown = values[..., :3] if values.shape[-1] >= 3 else np.repeat(values[..., :1], 3, axis=2)
    if shown.dtype == np.uint8:
        return shown
    low, high = np.percentile(shown, SHOWN_PERCENT, axis=(0, 1))
    span = np.where(high > low, high - low, 1)
    return (255 * np.clip((shown - low) / span, 0, 1) + 0.5).astype(np.uint8)
