import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.classes import SECOND_CLASSES, load_classes, read_label
from datasets.compose import Recipe, compose_pair
from datasets.compose_folders import RECORD_FILE
from datasets.compose_nuisance import disturb, move
from datasets.compose_regions import Tile, class_object, draw_region, feather_edge, parcel
from datasets.compose_source import find_scenes, split_scenes
from datasets.inspection import inspect_dataset
from datasets.sample import Scene, make_scene, write_sample_data
from tools import compose_pairs
from utils.errors import DataError, OptionError, UserError

DOC = Path(__file__).resolve().parents[1] / "docs" / "custom_data.md"
TOOL = DOC.parents[1] / "tools" / "compose_pairs.py"
FOLDERS = ("im1", "im2", "label1", "label2", "truth1", "truth2")
SIDE = 64
QUIET = Recipe(nuisance=0, distractors=0)
SCENES = 14
IGNORED = 255


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def single_date_set(root: Path, side: int = 72) -> Path:
    """Scenes of six classes, masks as indices, some pixels with 255."""
    for index in range(SCENES):
        scene = make_scene((9, index), side, side)
        mask = scene.truth1.copy()
        if index % 3 == 0:
            mask[:, :9] = IGNORED
        save(root / "images" / f"tile{index // 4}_{index:02d}.png", scene.image1)
        save(root / "masks" / f"tile{index // 4}_{index:02d}.png", mask)
    classes = zip(SECOND_CLASSES.names, SECOND_CLASSES.colors, strict=True)
    (root / "classes.json").write_text(json.dumps([{"name": n, "color": c} for n, c in classes]))
    return root


@pytest.fixture(scope="module")
def city(tmp_path_factory) -> Path:
    return single_date_set(tmp_path_factory.mktemp("city"))


@pytest.fixture
def own_city(city, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(city, tmp_path / "own_city"))


@pytest.fixture(scope="module")
def tiles() -> list[Tile]:
    scenes = [make_scene((7, index), SIDE, SIDE) for index in range(12)]
    return [Tile(scene.image1, scene.truth1) for scene in scenes]


@pytest.fixture(scope="module")
def composed(city, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("composed") / "root"
    compose(city, root)
    return root


def compose(city: Path, out: Path, *options: object) -> None:
    paths = ["--images", city / "images", "--masks", city / "masks", "--out", out]
    small = ["--train-pairs", 20, "--val-pairs", 6, "--size", SIDE, "--ignore", IGNORED]
    compose_pairs.main([str(part) for part in (*paths, *small, "--workers", 1, *options)])


def files_below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def read(path: Path) -> np.ndarray:
    return np.array(Image.open(path))


def pairs_of(tiles: list[Tile], recipe: Recipe | None = None) -> list[Scene]:
    return [
        compose_pair(tile, [tiles[i - 1], tiles[i - 2]], (4, i), recipe)
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
    assert not same(first[0], compose_pair(tiles[0], tiles[1:3], 5))
    for tile, (image, truth) in zip(tiles, before, strict=True):
        np.testing.assert_array_equal(tile.image, image)
        np.testing.assert_array_equal(tile.truth, truth)


def test_distractors_change_pixels_but_no_label(tiles):
    seen = 0
    for pair in pairs_of(tiles, Recipe(changed=0, distractors=8, nuisance=0)):
        assert not pair.label1.any()
        assert not pair.label2.any()
        np.testing.assert_array_equal(pair.truth1, pair.truth2)
        seen += np.count_nonzero((pair.image1 != pair.image2).any(axis=-1))
    assert seen > 0.02 * len(tiles) * SIDE * SIDE


@pytest.mark.parametrize("feather", [0, 1, 3])
def test_pixels_far_from_pastes_are_untouched(tiles, feather):
    one_class = Tile(np.full((SIDE, SIDE, 3), 90, np.uint8), np.ones((SIDE, SIDE), np.uint8))
    donor = Tile(np.full((SIDE, SIDE, 3), 200, np.uint8), np.full((SIDE, SIDE), 2, np.uint8))
    recipe = Recipe(changed=0.1, distractors=0, feather=feather, nuisance=0)
    soft = 0
    for seed in range(8):
        pair = compose_pair(one_class, [donor], seed, recipe)
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
        rows, columns = np.nonzero(opacity)
        for row, column in zip(rows, columns, strict=True):
            window = mask[max(row - radius, 0) : row + radius + 1]
            assert window[:, max(column - radius, 0) : column + radius + 1].any()
    assert set(np.unique(feather_edge(mask, 0))) == {0, 1}


@pytest.mark.parametrize("changed", [0.1, 0.3])
def test_share_changed_is_near_the_target(tiles, changed):
    shares = [(p.label1 > 0).mean() for p in pairs_of(tiles * 2, Recipe(changed=changed))]
    assert abs(np.mean(shares) - changed) < 0.2 * changed
    assert max(shares) <= 1.5 * changed


def test_a_scene_of_the_donors_only_class_gives_up():
    plain = Tile(np.zeros((SIDE, SIDE, 3), np.uint8), np.ones((SIDE, SIDE), np.uint8))
    assert not compose_pair(plain, [plain], 0).label1.any()
    unknown = Tile(plain.image, np.zeros((SIDE, SIDE), np.uint8))
    assert not compose_pair(unknown, [plain], 0).truth2.any()
    np.testing.assert_array_equal(compose_pair(plain, [unknown], 0).truth1, plain.truth)


def test_unknown_pixels_are_never_labelled_nor_pasted(tiles):
    rng = np.random.default_rng(0)
    for index, tile in enumerate(tiles):
        holes = [parcel((SIDE, SIDE), 600, rng) for _ in range(2)]
        scene, donor = (
            Tile(t.image, np.where(hole, 0, t.truth).astype(np.uint8))
            for t, hole in zip((tile, tiles[index - 1]), holes, strict=True)
        )
        pair = compose_pair(scene, [donor], index)
        for mask in (pair.label1, pair.label2, pair.truth1, pair.truth2):
            assert not mask[holes[0]].any()
        for truth in (pair.truth1, pair.truth2):
            assert truth[~holes[0]].all()


def test_regions(tiles):
    rng = np.random.default_rng(0)
    sizes = [np.count_nonzero(parcel((200, 100), 900, rng)) for _ in range(60)]
    assert max(sizes) <= 1250
    assert np.median(sizes) > 750
    for tile in tiles:
        region = class_object(tile.truth, rng)
        assert len(np.unique(tile.truth[region])) == 1
        drawn = draw_region(tile, 300, rng)
        assert drawn is None or 0 < np.count_nonzero(drawn.mask) <= 340


def test_scenes_that_are_not_square(tiles):
    wide = [Tile(tile.image[:40], tile.truth[:40]) for tile in tiles[:3]]
    assert compose_pair(wide[0], wide[1:], 0).label2.shape == (40, SIDE)


def test_wrong_arguments(tiles):
    with pytest.raises(ValueError, match="at least one donor"):
        compose_pair(tiles[0], [], 0)
    with pytest.raises(ValueError, match="do not fit"):
        compose_pair(tiles[0], [Tile(tiles[1].image[:9], tiles[1].truth[:9])], 0)
    for options in ({"changed": 1.1}, {"objects": -1}, {"feather": -1}, {"nuisance": -0.1}):
        with pytest.raises(ValueError, match=r"shares|at least 0"):
            Recipe(**options)


def test_nuisances_keep_the_scene(tiles):
    image = tiles[0].image
    np.testing.assert_array_equal(disturb(image, np.random.default_rng(0), 0), image)
    seen = [disturb(image, np.random.default_rng(seed)) for seed in range(12)]
    for other in seen:
        assert other.shape == image.shape
        assert other.dtype == np.uint8
        assert not np.array_equal(other, image)
        assert np.corrcoef(other.ravel(), image.ravel())[0, 1] > 0.7
    flat = np.full((40, 60, 3), 77, np.uint8)  # moving leaves no empty edges
    np.testing.assert_array_equal(move(flat, np.random.default_rng(0), 4.0), flat)


def test_written_layout_and_check(composed):
    names = {
        "train": [f"{i:05d}.png" for i in range(20)],
        "val": [f"{i:05d}.png" for i in range(6)],
    }
    for split, expected in names.items():
        for folder in FOLDERS:
            assert sorted(p.name for p in (composed / split / folder).iterdir()) == expected
    classes = load_classes(composed)
    assert classes == SECOND_CLASSES
    for path in composed.glob("*/label1/*.png"):
        label1, label2, truth1, truth2 = (
            read_label(path.parents[1] / folder / path.name, classes) for folder in FOLDERS[2:]
        )
        changed = truth1 != truth2
        np.testing.assert_array_equal(label1, np.where(changed, truth1, 0))
        np.testing.assert_array_equal(label2, np.where(changed, truth2, 0))
        np.testing.assert_array_equal(truth1 == 0, truth2 == 0)
    report = inspect_dataset(composed, classes)
    assert [finding.kind for finding in report.findings] == []


def test_no_scene_is_in_both_splits(composed, city):
    record = json.loads((composed / "composed.json").read_text())
    train, val = (set(record["scenes"][split]) for split in ("train", "val"))
    assert train
    assert val
    assert not train & val
    for pair, used in record["pairs"].items():
        assert set(used) <= (train if pair.startswith("train") else val)
        assert len(set(used)) == len(used) >= 2
    scenes = find_scenes(city / "images", city / "masks", r"^tile\d")
    for seed in range(5):
        splits = split_scenes(scenes, 0.3, seed)
        places = [{scene.place for scene in splits[split]} for split in ("train", "val")]
        assert not places[0] & places[1]
        assert sum(map(len, splits.values())) == len(scenes)


def test_scenes_chosen_by_name(city, tmp_path):
    listed = tmp_path / "val.txt"
    listed.write_text("tile1_04\ntile3_*\n")
    for text in (str(listed), "tile1_04, tile3_*"):
        chosen = compose_pairs._val_scenes(text)
        splits = split_scenes(find_scenes(city / "images", city / "masks"), chosen, 0)
        assert [s.name for s in splits["val"]] == ["tile1_04", "tile3_12", "tile3_13"]


def test_workers_and_restart_change_no_byte(composed, city, tmp_path):
    out = tmp_path / "out"
    compose(city, out, "--workers", 2)
    written = files_below(out)
    assert written == files_below(composed)
    compose(city, out, "--overwrite", "--seed", 1)
    assert files_below(out) != written
    (out / "train" / "im1" / ".00003.png.abc.tmp").touch()  # a killed run leaves such files
    compose(city, out, "--overwrite")
    assert files_below(out) == written
    compose(city, out, "--overwrite", "--train-pairs", 3)
    fewer = files_below(out)
    assert all(written[name] == fewer[name] for name in fewer if name.endswith(".png"))
    assert len(fewer) == 2 + 9 * len(FOLDERS)
    compose(city, out, "--overwrite", "--val-pairs", 0, "--val-scenes", "tile0_*")
    assert not (out / "val").exists()
    assert not any(
        "tile0_" in name for name in json.loads((out / RECORD_FILE).read_text())["scenes"]["train"]
    )


def test_mask_formats_say_the_same(composed, own_city, tmp_path):
    expected = {k: v for k, v in files_below(composed).items() if k.endswith(".png")}
    masks = {path: read(path) for path in (own_city / "masks").iterdir()}
    for path, mask in masks.items():
        rgb = SECOND_CLASSES.to_rgb(np.where(mask == IGNORED, 1, mask))
        save(path, np.where(mask[..., None] == IGNORED, 7, rgb).astype(np.uint8))
    compose(own_city, tmp_path / "rgb", "--ignore", "#070707")
    foreign = {str(10 * i): name for i, name in enumerate(SECOND_CLASSES.names)}
    (tmp_path / "map.json").write_text(json.dumps(foreign))
    for path, mask in masks.items():
        save(path, (10 * np.where(mask == IGNORED, 0, mask)).astype(np.uint8))
    argv = ["--images", own_city / "images", "--masks", own_city / "masks", "--size", SIDE]
    argv += ["--out", tmp_path / "map", "--train-pairs", 20, "--val-pairs", 6, "--workers", 1]
    compose_pairs.main([str(a) for a in [*argv, "--class-map", tmp_path / "map.json"]])
    for name in ("rgb", "map"):
        found = files_below(tmp_path / name)
        assert {k: v for k, v in found.items() if k.endswith(".png")} == expected


def damage(city: Path, kind: str) -> None:
    image, mask = city / "images" / "tile1_05.png", city / "masks" / "tile1_05.png"
    if kind in ("no folder", "empty"):
        shutil.rmtree(city / "masks")
        (city / ("masks" if kind == "empty" else "others")).mkdir()
    elif kind == "unpaired":
        mask.unlink()
    elif kind == "twice":
        Image.open(image).save(image.with_suffix(".bmp"))
    elif kind == "size":
        save(mask, read(mask)[:-1])
    elif kind == "value":
        save(mask, np.full_like(read(mask), 9))
    elif kind == "zero":
        save(mask, np.zeros_like(read(mask)))
    elif kind == "color":
        save(mask, np.full((*read(mask).shape, 3), (1, 2, 3), np.uint8))
    elif kind == "truncated":
        mask.write_bytes(mask.read_bytes()[:200])
    elif kind == "one class":
        for path in (city / "masks").iterdir():
            save(path, np.ones_like(read(path)))
    elif kind == "one listed":
        entries = json.loads((city / "classes.json").read_text())[:2]
        (city / "classes.json").write_text(json.dumps(entries))
    elif kind == "no classes":
        (city / "classes.json").unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no folder", r"masks: no such folder; correct --masks"),
        ("empty", r"masks: no images in it"),
        ("unpaired", r"tile1_05.png: no partner in .*masks; .*called tile1_05\.\*"),
        ("twice", r"same name twice"),
        ("size", r"masks.tile1_05.png: 72 × 71 pixels, but .*images.tile1_05.png has 72 × 72"),
        ("value", r"tile1_05.png: foreign values, value 9: 5184 pixels.*--class-map"),
        ("zero", r"tile1_05.png: 5184 pixels have value or colour 0.*--ignore 0"),
        ("color", r"tile1_05.png: .*colour \(1, 2, 3\)"),
        ("truncated", r"tile1_05.png: cannot be decoded"),
        ("one class", r"1 class in all its masks"),
        ("one listed", r"one class beside 'unchanged'"),
        ("no classes", r"no classes.json in .* name one with --classes"),
    ],
)
def test_bad_sources_are_named_and_nothing_written(own_city, tmp_path, kind, message):
    damage(own_city, kind)
    with pytest.raises(DataError, match=message):
        compose(own_city, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "73"], r"72 × 72 pixels, less than --size 73"),
        (["--val-scenes", "tile1_05"], r"val: 1 scenes, but a pair needs 2"),
        (["--val-scenes", "tile*"], r"train: 0 scenes"),
        (["--val-scenes", "nowhere"], r"'nowhere' fits no scene"),
        (["--scene-pattern", "x"], r"'x' is not in its name"),
        (["--classes", "nowhere/classes.json"], r"nowhere.classes.json: no such file; name a JSON"),
        (["--classes", "list.json"], r"list.json: no such file; name a JSON file of classes"),
        (["--train-pairs", "0", "--val-pairs", "0"], r"nothing to write"),
        (["--class-map", "map.json"], r'map those values to "unchanged"'),
    ],
)
def test_bad_options_are_named(city, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        compose(city, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        ("--size", "8"),
        ("--changed", "0"),
        ("--changed", "1"),
        ("--ignore", "1,2"),
        ("--ignore", "300"),
        ("--seed", "x"),
        ("--scene-pattern", "("),
        ("--val-scenes", ","),
    ],
)
def test_bad_values_end_in_usage(city, tmp_path, options, capsys):
    with pytest.raises(SystemExit):
        compose(city, tmp_path / "out", *options)
    assert options[0] in capsys.readouterr().err


def test_nothing_of_another_origin_is_removed(composed, city, tmp_path):
    out = Path(shutil.copytree(composed, tmp_path / "out"))
    with pytest.raises(OptionError, match=r"not empty; pass --overwrite"):
        compose(city, out)
    (out / "notes.txt").touch()
    with pytest.raises(OptionError, match=r"notes.txt was not written by this tool"):
        compose(city, out, "--overwrite")
    (out / "notes.txt").unlink()
    (out / "composed.json").unlink()
    with pytest.raises(OptionError, match=r"has no composed.json"):
        compose(city, out, "--overwrite")
    with pytest.raises(OptionError, match=r"a file"):
        compose(city, city / "classes.json", "--overwrite")
    assert len(files_below(out)) == len(files_below(composed)) - 1
    assert len(list((city / "images").iterdir())) == SCENES


def test_output_tells_the_share(city, tmp_path, capsys):
    compose(city, tmp_path / "out", "--val-pairs", 0, "--train-pairs", 2)
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"train: 2 pairs of 64 × 64 pixels from 14 scenes, \d+\.\d% changed", lines[0]
    )
    assert not (tmp_path / "out" / "val").exists()


def test_command_line_ends_with_one_line(city, tmp_path):
    words = ["--images", tmp_path / "none", "--masks", city / "masks", "--out", tmp_path / "out"]
    words += ["--classes", city]
    command = [sys.executable, str(TOOL), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'none'}: no such folder; correct --images\n"


# The commands of docs/custom_data.md, as written but for sizes and what a test can afford.
SMALL = {"hrnet_w18": "mobilenetv3_small_050", "400": "12", "100": "4", "256": "64"}
FAST = ["--workers", "0", "--amp", "off", "--device", "cpu"]


def doc_commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", DOC.read_text(encoding="utf-8"), flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def prepare_doc_data(root: Path) -> None:
    """Pairs with labels 0, 10, … 60; a single-date set; and the JSON files of the page."""
    write_sample_data(root / "data" / "raw", 10, 3, SIDE, SIDE, 0, "index")
    for path in root.glob("data/raw/*/label[12]/*.png"):
        save(path, 10 * read(path))
    for folder in root.glob("data/raw/*/truth[12]"):
        shutil.rmtree(folder)
    single_date_set(root / "data" / "city")
    (root / "data" / "city" / "classes.json").unlink()
    page = DOC.read_text(encoding="utf-8")
    for name, text in re.findall(r"^`(data/\S+\.json)`\n\n```json\n(.*?)```", page, re.S | re.M):
        (root / name).write_text(text, encoding="utf-8")


def test_every_command_of_the_page_runs(tmp_path, monkeypatch):
    prepare_doc_data(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in doc_commands():
        if not line.startswith("python "):
            subprocess.run(["bash", "-c", line], check=True, timeout=20)
            continue
        for word, small in SMALL.items():
            line = re.sub(rf"(?<![a-z0-9]){word}(?![a-z0-9])", small, line)  # noqa: PLW2901
        script, *words = [word for word in shlex.split(line)[1:] if word != "--pretrained"]
        if script in ("train.py", "label.py", "test.py"):
            words += FAST
        if script == "train.py":
            words += ["--epochs", "1", "--batch-size", "4", "--no-tensorboard"]
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        result = module.main(words)
        assert "check_data" not in script or result == 0, line
    assert len(list(Path("data/own/train/label1").iterdir())) == 10
    assert len(list(Path("outdir/composed/masks/test/im2").iterdir())) == 4
    assert json.loads(Path("outdir/check-list/report.json").read_text())["passed"]


def test_the_page_is_short_and_its_files_exist():
    text = DOC.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 160
    for name in re.findall(r"(?:tools|tests)/\w+\.py", text):
        assert (DOC.parents[1] / name).exists(), name
