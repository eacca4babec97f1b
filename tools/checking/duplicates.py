"""The same image twice in a data set: exact copies, and copies that were re-encoded or flipped."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_HAMMING = 6  # of 63 bits

MIN_CORRELATION = 0.98  # of the thumbnails; two dates of one place may reach it, and leak as well

MIN_CONTRAST = 3.0  # grey levels; flatter images have no structure to compare

ROWS = 256  # compared with all others at a time

# transpose, then reverse rows, then reverse columns: the eight views of a square
VIEWS = [(t, r, c) for t in (False, True) for r in (False, True) for c in (False, True)]


@dataclass(frozen=True)
class ImageKey:
    """One image of a pair, as the search for copies sees it.

    Attributes:
        path: the file, for reports.
        pair: number of its pair; the two dates of one pair are never compared.
        split: its split.
        digest: hash of the decoded pixels.
        thumbnail: (32, 32) uint8 grey.
    """

    path: str
    pair: int
    split: str
    digest: str
    thumbnail: np.ndarray


@dataclass(frozen=True)
class Copies:
    """Images with the same content: all paths of an exact copy, two of a near copy.

    Attributes:
        paths: the files.
        pairs: the number of each file's pair.
        splits: the splits they are in, sorted; more than one is leakage.
        exact: whether the decoded pixels are equal.
        detail: how near a near copy is.
    """

    paths: tuple[str, ...]
    pairs: tuple[int, ...]
    splits: tuple[str, ...]
    exact: bool
    detail: str = ""


def find_copies(
    images: Sequence[ImageKey],
    max_hamming: int = MAX_HAMMING,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> list[Copies]:
    """Find images of different pairs that show the same.

    Exact copies have equal decoded pixels. Near copies agree in all but ``max_hamming`` of the 63
    signs of a perceptual hash (the lowest frequencies of the thumbnail's cosine transform), in one
    of eight flipped and turned views, and their thumbnails correlate; each image is listed with its
    nearest only. Images without contrast are not compared. Time grows with the square of the
    number of images.
    """
    exact = _exact_copies(images)
    pairs_of = {path: copies.pairs for copies in exact for path in copies.paths}
    near = _near_copies(images, max_hamming, progress)
    # The two dates of a copied pair resemble each other too; that pair is in the list already.
    return exact + [
        copies for copies in near if copies.pairs[1] not in pairs_of.get(copies.paths[0], ())
    ]


def _exact_copies(images: Sequence[ImageKey]) -> list[Copies]:
    by_digest: dict[str, list[ImageKey]] = {}
    for image in images:
        if image.thumbnail.std() > 0:  # blank tiles are equal without being copies
            by_digest.setdefault(image.digest, []).append(image)
    return [
        Copies(
            tuple(image.path for image in group),
            tuple(image.pair for image in group),
            tuple(sorted({image.split for image in group})),
            exact=True,
        )
        for group in by_digest.values()
        if len({image.pair for image in group}) > 1
    ]


def _near_copies(
    images: Sequence[ImageKey],
    max_hamming: int,
    progress: Callable[[Iterable[int]], Iterable[int]],
) -> list[Copies]:
    images = [image for image in images if image.thumbnail.std() >= MIN_CONTRAST]
    if len(images) < 2:
        return []
    thumbnails = np.stack([image.thumbnail for image in images])
    views = perceptual_hashes(thumbnails)
    pairs = np.array([image.pair for image in images])
    names = sorted({image.split for image in images})
    splits = np.array([names.index(image.split) for image in images])
    found = []
    for start in progress(range(0, len(images), ROWS)):
        rows = slice(start, min(start + ROWS, len(images)))
        distance = _nearest_view(views[0, rows], views)
        distance[pairs[rows, None] == pairs] = 255
        # Each two images once: the later split looks into the earlier ones, a split at itself
        # looks at the images before.
        across = splits[rows, None] > splits
        before = np.tri(*distance.shape, k=start - 1, dtype=bool)
        within = (splits[rows, None] == splits) & before
        for candidates in (across, within):
            masked = np.where(candidates, distance, 255)
            best = masked.argmin(axis=1)
            for row in np.flatnonzero(masked[np.arange(len(best)), best] <= max_hamming):
                copies = _confirm(images, thumbnails, start + row, int(best[row]))
                if copies:
                    found.append(copies)
    return found


def perceptual_hashes(thumbnails: np.ndarray) -> np.ndarray:
    """Hash (N, S, S) grey thumbnails in all `VIEWS`: (8, N) uint64, view 0 as they are.

    Bit k is the sign of the k-th of the 8 × 8 lowest cosine coefficients. Reversing an axis changes
    the sign of its odd frequencies, so that the other views need no transform of their own.
    """
    side = thumbnails.shape[-1]
    waves = np.cos(np.pi * np.outer(np.arange(8), 2 * np.arange(side) + 1) / (2 * side))
    coefficients = waves @ thumbnails.astype(np.float64) @ waves.T
    alternating, ones = (-1.0) ** np.arange(8), np.ones(8)
    weights = (np.uint64(1) << np.arange(64, dtype=np.uint64)).reshape(8, 8)
    weights[0, 0] = 0  # the mean brightness says nothing
    hashes = []
    for transpose, rows, columns in VIEWS:
        view = coefficients.transpose(0, 2, 1) if transpose else coefficients
        signs = np.outer(alternating if rows else ones, alternating if columns else ones)
        hashes.append(np.where(view * signs > 0, weights, np.uint64(0)).sum(axis=(1, 2)))
    return np.stack(hashes).astype(np.uint64)


def _nearest_view(rows: np.ndarray, views: np.ndarray) -> np.ndarray:
    nearest = np.full((len(rows), views.shape[1]), 255, dtype=np.uint8)
    for view in views:
        np.minimum(nearest, _count_bits(rows[:, None] ^ view), out=nearest)
    return nearest


def _count_bits(values: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(values)
    bytes_ = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)
    return _BITS_OF_BYTE[bytes_].sum(axis=-1, dtype=np.uint8)


_BITS_OF_BYTE = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)


def _confirm(
    images: Sequence[ImageKey], thumbnails: np.ndarray, first: int, second: int
) -> Copies | None:
    scores = [_correlation(thumbnails[first], see(thumbnails[second], *view)) for view in VIEWS]
    best = int(np.argmax(scores))
    if scores[best] < MIN_CORRELATION:
        return None
    a, b = images[first], images[second]
    turned = ", flipped or turned" if best else ""
    return Copies(
        (a.path, b.path),
        (a.pair, b.pair),
        tuple(sorted({a.split, b.split})),
        exact=False,
        detail=f"correlation {scores[best]:.3f}{turned}",
    )


def see(picture: np.ndarray, transpose: bool, rows: bool, columns: bool) -> np.ndarray:
    """Return one of the `VIEWS` of a picture."""
    picture = np.swapaxes(picture, 0, 1) if transpose else picture
    return picture[:: -1 if rows else 1, :: -1 if columns else 1]


def _correlation(a: np.ndarray, b: np.ndarray) -> Any:
    return np.corrcoef(a.ravel(), b.ravel())[0, 1]
