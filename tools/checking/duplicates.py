"""The same image twice in a data set: exact copies, and copies that were re-encoded or flipped."""

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np

from tools.checking.findings import Entry
from tools.checking.pair_report import FileReport, PairReport
from utils.text import progress

MAX_HAMMING = 6  # of 63 bits
MIN_CORRELATION = 0.98  # of the thumbnails; two dates of one place may reach it, and leak as well
MIN_CONTRAST = 3.0  # grey levels; flatter images have no structure to compare
ROWS = 256  # compared with all others at a time

# transpose, then reverse rows, then reverse columns: the eight views of a square
VIEWS = [(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]


Image = tuple[PairReport, FileReport]  # a pair, and one of its two images


def find_copies(
    reports: Iterable[PairReport], max_hamming: int = MAX_HAMMING
) -> list[tuple[str, Entry]]:
    """Find images of different pairs that show the same: leaks between splits, else duplicates.

    Exact copies have equal decoded pixels. Near copies agree in all but ``max_hamming`` of the 63
    signs of a perceptual hash (the lowest frequencies of the thumbnail's cosine transform), in one
    of eight flipped and turned views, and their thumbnails correlate; each image is listed with its
    nearest only. Images without contrast are not compared. Time grows with the square of the
    number of images.
    """
    images = [(r, file) for r in reports for file in r.images if file.thumbnail is not None]
    by_digest: dict[str, list[Image]] = {}
    for report, file in images:
        if file.thumbnail.std() > 0:  # blank tiles are equal without being copies
            by_digest.setdefault(file.digest, []).append((report, file))
    groups = [group for group in by_digest.values() if len(_pair_ids(group)) > 1]
    copied = {file.name: _pair_ids(group) for group in groups for _, file in group}
    # The two dates of a copied pair resemble each other too; that pair is in the list already.
    return [_entry("exact", group) for group in groups] + [
        _entry("near", ((report, file), other), said)
        for (report, file), other, said in _near_copies(images, max_hamming)
        if other[0].pair.id not in copied.get(file.name, ())
    ]


def _pair_ids(images: Iterable[Image]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(report.pair.id for report, _ in images))


def _entry(likeness: str, images: Sequence[Image], said: str = "") -> tuple[str, Entry]:
    splits = sorted({report.split for report, _ in images})
    detail = " and ".join(splits) + (f", {said}" if said else "")
    kind = f"{'leak' if len(splits) > 1 else 'duplicate'}-{likeness}"
    return kind, Entry(tuple(file.name for _, file in images), detail, _pair_ids(images))


def _near_copies(images: Sequence[Image], max_hamming: int) -> list[tuple[Image, Image, str]]:
    images = [(r, file) for r, file in images if file.thumbnail.std() >= MIN_CONTRAST]
    if len(images) < 2:
        return []
    thumbnails = np.stack([file.thumbnail for _, file in images])
    views = perceptual_hashes(thumbnails)
    pairs = np.unique([report.pair.id for report, _ in images], return_inverse=True)[1]
    splits = np.unique([report.split for report, _ in images], return_inverse=True)[1]
    found = []
    for start in progress(range(0, len(images), ROWS), "checking", unit="copies"):
        rows = slice(start, start + ROWS)
        agreement = reduce(np.maximum, (views[0, rows] @ view.T for view in views))
        distance = (63 - agreement) / 2  # signs that differ in the nearest view
        distance[pairs[rows, None] == pairs] = np.inf
        # Each two images once: the later split looks into the earlier ones, a split at itself
        # looks at the images before.
        across = splits[rows, None] > splits
        before = np.tri(*distance.shape, k=start - 1, dtype=bool)
        within = (splits[rows, None] == splits) & before
        for candidates in (across, within):
            masked = np.where(candidates, distance, np.inf)
            best = masked.argmin(axis=1)
            for row in np.flatnonzero(masked.min(axis=1) <= max_hamming):
                said = _resemblance(thumbnails[start + row], thumbnails[best[row]])
                if said:
                    found.append((images[start + row], images[best[row]], said))
    return found


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hash (N, S, S) grey thumbnails in all `VIEWS`: (8, N, 64) float32, view 0 as they are.

    Values are the signs, ±1, of the 8 × 8 lowest cosine coefficients, 0 for the mean brightness,
    which says nothing. Reversing an axis changes the sign of its odd frequencies, so that the other
    views need no transform of their own.
    """
    side = thumbnails.shape[-1]
    waves = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(side) + 1) / (2 * side))
    coefficients = waves @ thumbnails.astype(np.float64) @ waves.T
    alternating, ones = (-1.0) ** np.arange(8), np.ones(8)
    hashes = np.empty((len(VIEWS), len(thumbnails), 8, 8), dtype=np.float32)
    for number, (transpose, rows, columns) in enumerate(VIEWS):
        view = coefficients.transpose(0, 2, 1) if transpose else coefficients
        signs = np.outer(alternating if rows else ones, alternating if columns else ones)
        hashes[number] = np.where(view * signs > 0, 1, -1)
    hashes[..., 0, 0] = 0
    return hashes.reshape(len(VIEWS), len(thumbnails), 64)


def _resemblance(first: np.ndarray, second: np.ndarray) -> str:
    """Say how well a thumbnail correlates with the best view of another; empty if it does not."""
    scores = [
        np.corrcoef(first.ravel(), see(second, *view).ravel())[0, 1]  # (2, 2) of two pictures
        for view in VIEWS
    ]
    best = int(np.argmax(scores))
    turned = ", flipped or turned" if best else ""
    return f"correlation {scores[best]:.3f}{turned}" if scores[best] >= MIN_CORRELATION else ""


def see(picture: np.ndarray, transpose: bool, rows: bool, columns: bool) -> np.ndarray:
    """Return one of the `VIEWS` of a picture."""
    picture = np.swapaxes(picture, 0, 1) if transpose else picture
    return picture[:: -1 if rows else 1, :: -1 if columns else 1]
