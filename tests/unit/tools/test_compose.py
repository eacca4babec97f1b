"""A composed pair: labels, pastes, feathered edges, regions and nuisances."""

import numpy as np
import pytest

from tests.helpers.one_date_scenes import SIDE
from tools.composing.compose import Recipe, compose_pair
from tools.composing.nuisance import disturb, move
from tools.composing.regions import Tile, class_object, draw_region, feather_edge, parcel
from tools.scenes.scene import Scene, make_scene


@pytest.fixture(scope="module")
def tiles() -> list[Tile]:
    scenes = [make_scene((7, index), SIDE, SIDE) for index in range(12)]
    return [Tile(scene.image1, scene.truth1) for scene in scenes]


def flat(value: int, class_index: int) -> Tile:
    truth = np.full((SIDE, SIDE), class_index, np.uint8)
    return Tile(np.full((SIDE, SIDE, 3), value, np.uint8), truth)


def pairs_of(tiles: list[Tile], **recipe) -> list[Scene]:
    return [
        compose_pair(tile, [tiles[i - 1], tiles[i - 2]], (4, i), Recipe(**recipe))
        for i, tile in enumerate(tiles)
    ]


def same(a: Scene, b: Scene) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_labels_are_truth_exactly_where_it_differs(tiles):
    for pair in pairs_of(tiles):
        changed = pair.truth1 != pair.truth2
        assert changed.any()
        assert pair.image1.dtype == pair.label1.dtype == np.uint8
        for label, truth in ((pair.label1, pair.truth1), (pair.label2, pair.truth2)):
            np.testing.assert_array_equal(label, np.where(changed, truth, 0))
            assert set(np.unique(truth)) <= set(range(1, 7))


def test_same_seed_same_pair_and_inputs_untouched(tiles):
    before = [(tile.image.copy(), tile.truth.copy()) for tile in tiles]
    first, second = pairs_of(tiles), pairs_of(tiles)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert not same(first[0], compose_pair(tiles[0], tiles[1:3], 5, Recipe()))
    for tile, (image, truth) in zip(tiles, before, strict=True):
        assert np.array_equal(tile.image, image) and np.array_equal(tile.truth, truth)


def test_distractors_change_pixels_but_no_label(tiles):
    seen = 0
    for pair in pairs_of(tiles, changed=0, distractors=8, nuisance=0):
        assert not pair.label1.any() and not pair.label2.any()
        seen += np.count_nonzero((pair.image1 != pair.image2).any(axis=-1))
    assert seen > 0.02 * len(tiles) * SIDE * SIDE


@pytest.mark.parametrize("feather", [0, 1, 3])
def test_pixels_far_from_pastes_are_untouched(feather):
    recipe = Recipe(changed=0.1, distractors=0, feather=feather, nuisance=0)
    soft = 0
    for seed in range(8):
        pair = compose_pair(flat(90, 1), [flat(200, 2)], seed, recipe)
        for image, truth in ((pair.image1, pair.truth1), (pair.image2, pair.truth2)):
            # Every paste changes the class here, so that the truth shows where pastes are.
            differs = (image != 90).any(axis=-1)
            assert differs[truth == 2].all()
            assert not differs[feather_edge(truth == 2, feather) == 0].any()
            soft += np.count_nonzero(differs & (truth == 1))
    assert (soft > 0) == (feather > 0)


def test_feather_never_contradicts_the_label():
    mask = np.zeros((30, 30), dtype=bool)
    mask[10:20, 10:20] = True
    mask[3, 2:28] = True  # thin
    mask[25:28, 0] = True  # at the edge
    for radius in (1, 2, 5):
        opacity = feather_edge(mask, radius)
        assert opacity.dtype == np.float32
        assert opacity[mask].min() >= 0.6
        assert opacity[~mask].max() <= 0.5
        assert opacity.min() == 0
        for row, column in np.argwhere(opacity):
            window = mask[max(row - radius, 0) : row + radius + 1]
            assert window[:, max(column - radius, 0) : column + radius + 1].any()
    assert set(np.unique(feather_edge(mask, 0))) == {0, 1}


@pytest.mark.parametrize("changed", [0.1, 0.3])
def test_share_changed_is_near_the_target(tiles, changed):
    shares = [(p.label1 > 0).mean() for p in pairs_of(tiles * 2, changed=changed)]
    assert abs(np.mean(shares) - changed) < 0.2 * changed
    assert max(shares) <= 1.5 * changed


def test_scenes_of_one_class_or_none_give_up():
    wide = [Tile(tile.image[:40], tile.truth[:40]) for tile in (flat(0, 1), flat(1, 2))]
    assert compose_pair(wide[0], wide[1:], 0, Recipe()).label2.shape == (40, SIDE)
    plain, unknown = flat(0, 1), flat(0, 0)
    assert not compose_pair(plain, [plain], 0, Recipe()).label1.any()
    assert not compose_pair(unknown, [plain], 0, Recipe()).truth2.any()
    assert (compose_pair(plain, [unknown], 0, Recipe()).truth1 == 1).all()


def test_unknown_pixels_are_never_labelled_nor_pasted(tiles):
    rng = np.random.default_rng(0)
    for index, tile in enumerate(tiles):
        holes = [parcel((SIDE, SIDE), 600, rng) for _ in range(2)]
        scene, donor = (
            Tile(t.image, np.where(hole, 0, t.truth).astype(np.uint8))
            for t, hole in zip((tile, tiles[index - 1]), holes, strict=True)
        )
        pair = compose_pair(scene, [donor], index, Recipe())
        for truth in (pair.truth1, pair.truth2):
            assert not truth[holes[0]].any() and truth[~holes[0]].all()


def test_regions(tiles):
    rng = np.random.default_rng(0)
    sizes = [np.count_nonzero(parcel((200, 100), 900, rng)) for _ in range(60)]
    assert max(sizes) <= 1250
    assert np.median(sizes) > 750
    for tile in tiles:
        assert len(np.unique(tile.truth[class_object(tile.truth, rng)])) == 1
        assert np.count_nonzero(draw_region(tile.truth, 300, rng, 0.5)) <= 340


def test_nuisances_keep_the_scene(tiles):
    image = tiles[0].image
    np.testing.assert_array_equal(disturb(image, np.random.default_rng(0), 0), image)
    for seed in range(12):
        other = disturb(image, np.random.default_rng(seed))
        assert other.shape == image.shape and other.dtype == np.uint8
        assert not np.array_equal(other, image)
        assert np.corrcoef(other.ravel(), image.ravel())[0, 1] > 0.7
    plain = flat(77, 1).image[:40]  # moving leaves no empty edges
    np.testing.assert_array_equal(move(plain, np.random.default_rng(0), 4.0), plain)
