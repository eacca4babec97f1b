"""What holds for any input: drawn by hypothesis, bounded so that all of it takes seconds."""

import contextlib
import io
import itertools
import string
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import label
import test as predict
import train
from datasets import splits
from datasets.bands import RGB
from datasets.classes import SECOND_CLASSES, ClassList
from datasets.images import image_size, read_bands
from datasets.labels import read_label
from datasets.loaders import SameSizeBatches
from engine.metrics import compute_metrics
from engine.predictor import apply_view, undo_view
from tests.helpers.damaged_bytes import arrays_or_named_errors, changes, mutate
from utils.errors import DataError, UserError
from utils.pictures import save_image, save_mask

few = settings(
    max_examples=40,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
sides = st.integers(1, 40)
seeds = st.integers(0, 2**32 - 1)
colors = st.tuples(*[st.integers(0, 255)] * 3)


@st.composite
def class_lists(draw) -> ClassList:
    chosen = draw(st.lists(colors, min_size=2, max_size=20, unique=True))
    return ClassList(tuple(f"class {i}" for i in range(len(chosen))), tuple(chosen))


def read_index(path: Path) -> np.ndarray:
    return read_label(path, SECOND_CLASSES)


def read_image(path: Path) -> np.ndarray:
    return read_bands(path, RGB)


READERS = (image_size, read_image, read_index)


def random_mask(classes: ClassList, height: int, width: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, len(classes.names), (height, width), dtype=np.uint8)


# --- files ----------------------------------------------------------------------------------


@few
@given(class_lists(), sides, sides, seeds)
def test_masks_survive_the_disk(tmp_path, classes, height, width, seed):
    mask = random_mask(classes, height, width, seed)
    path = tmp_path / "mask.png"
    save_mask(path, mask, classes.colors)
    assert np.array_equal(read_label(path, classes), mask)
    assert image_size(path) == (height, width)
    with Image.open(path) as image:  # and viewers show the class colours
        assert np.array_equal(np.asarray(image.convert("RGB")), classes.to_rgb(mask))


@few
@given(class_lists(), sides, sides, seeds)
def test_colours_and_indices_are_inverses(tmp_path, classes, height, width, seed):
    mask = random_mask(classes, height, width, seed)
    rgb = classes.to_rgb(mask)
    assert rgb.shape == (height, width, 3)
    assert np.array_equal(classes.to_index(rgb), mask)
    save_image(tmp_path / "mask.png", rgb)
    assert np.array_equal(read_label(tmp_path / "mask.png", classes), mask)


@few
@given(class_lists(), colors, seeds)
def test_a_colour_of_no_class_is_refused(classes, color, seed):
    rgb = classes.to_rgb(random_mask(classes, 3, 4, seed))
    rgb[1, 2] = color
    if color in classes.colors:
        assert classes.to_index(rgb)[1, 2] == classes.colors.index(color)
    else:
        with pytest.raises(ValueError, match="no class"):
            classes.to_index(rgb)


# --- views ----------------------------------------------------------------------------------


@few
@given(st.lists(st.integers(1, 4), max_size=2), sides, sides, st.booleans(), st.integers(0, 3))
def test_views_have_inverses(leading, height, width, flip, turns):
    x = torch.arange(int(np.prod([*leading, height, width]))).view(*leading, height, width)
    seen = apply_view(x, (flip, turns))
    assert seen.shape[-2:] == ((width, height) if turns % 2 else (height, width))
    assert torch.equal(undo_view(seen, (flip, turns)), x)
    assert torch.equal(apply_view(undo_view(x, (flip, turns)), (flip, turns)), x)


# --- splits and shares ----------------------------------------------------------------------

stems = st.lists(
    st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=8),
    min_size=2,
    max_size=60,
    unique=True,
)


@few
@given(stems, seeds, st.sampled_from(["{}", "{}.png", "train/{}", "train/im1/{}.tif"]))
def test_splits_divide_all_names(tmp_path, names, seed, form):
    ids = sorted(f"train/{name}" for name in names)
    split = splits.every_10th(ids)
    assert sorted(split.train + split.val) == ids and len(split.val) == -(-len(ids) // 10)
    assert split == splits.every_10th(ids[::-1])
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.choice(names, rng.integers(1, len(names)), replace=False).tolist())
    path = tmp_path / "val.txt"
    path.write_text("\n".join(form.format(name) for name in chosen), encoding="utf-8")
    split = splits.from_lists(ids, None, path)
    assert list(split.val) == sorted(f"train/{name}" for name in chosen)
    assert sorted(split.train + split.val) == ids


@few
@given(
    st.lists(st.sampled_from([(8, 8), (8, 16), (16, 8)]), max_size=40),
    st.integers(1, 9),
    st.integers(1, 7),
)
def test_processes_share_batches_of_one_size(sizes, batch_size, world_size):
    shares = [
        list(SameSizeBatches(sizes, batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    batches = list(itertools.chain.from_iterable(shares))
    assert sorted(itertools.chain.from_iterable(batches)) == list(range(len(sizes)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({sizes[index] for index in batch}) == 1 for batch in batches)
    counts = [len(share) for share in shares]
    assert max(counts) - min(counts) <= 1
    alone = list(SameSizeBatches(sizes, batch_size, rank=0, world_size=1))
    assert sorted(batches) == sorted(alone)


# --- scores ---------------------------------------------------------------------------------


@st.composite
def confusions(draw) -> torch.Tensor:
    """Sparse and dense matrices, among them empty ones and such without any change."""
    size = draw(st.integers(2, 8))
    cells = st.one_of(st.just(0), st.integers(0, 10**6))
    values = draw(st.lists(cells, min_size=size * size, max_size=size * size))
    return torch.tensor(values, dtype=torch.int64).view(size, size)


@few
@given(confusions())
def test_scores_are_bounded(counts):
    metrics = compute_metrics(counts)
    values = metrics.to_dict()
    ious = values.pop("class_iou")
    assert all(0 <= iou <= 1 for iou in ious)
    for name, value in values.items():
        low = -1 if name in ("sek", "kappa", "score") else 0
        assert low - 1e-9 <= value <= 1 + 1e-9, name
    assert metrics.miou == pytest.approx((metrics.iou_unchanged + metrics.iou_changed) / 2)
    assert metrics.score == pytest.approx(0.3 * metrics.miou + 0.7 * metrics.sek)
    assert metrics.iou_unchanged == pytest.approx(ious[0])


@few
@given(st.lists(st.integers(1, 10**6), min_size=3, max_size=8))
def test_a_perfect_prediction_scores_one(diagonal):
    metrics = compute_metrics(torch.diag(torch.tensor(diagonal)))
    values = metrics.to_dict()
    assert values.pop("class_iou") == [1] * len(diagonal)
    assert values == pytest.approx(dict.fromkeys(values, 1.0))


@few
@given(confusions(), seeds)
def test_the_order_of_classes_does_not_matter(counts, seed):
    order = np.random.default_rng(seed).permutation(len(counts) - 1) + 1
    order = torch.tensor([0, *order.tolist()])
    found, expected = (compute_metrics(c).to_dict() for c in (counts[order][:, order], counts))
    ious = expected.pop("class_iou")
    assert found.pop("class_iou") == pytest.approx([ious[i] for i in order])
    assert found == pytest.approx(expected)


@few
@given(confusions(), st.integers(2, 1000))
def test_the_number_of_pairs_does_not_matter(counts, factor):
    found, expected = (compute_metrics(c).to_dict() for c in (counts * factor, counts))
    assert found.pop("class_iou") == pytest.approx(expected.pop("class_iou"))
    assert found == pytest.approx(expected, abs=1e-9)


# --- damaged files --------------------------------------------------------------------------


def valid_files() -> list[tuple[str, bytes]]:
    """Small images of every kind a data set may hold."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    mask = rng.integers(0, 7, (9, 11), dtype=np.uint8)
    palette = Image.fromarray(mask)
    palette.putpalette([c for color in SECOND_CLASSES.colors for c in color])
    pngs = [rgb, Image.fromarray(mask), palette, Image.fromarray(SECOND_CLASSES.to_rgb(mask))]
    files = []
    for kind, image in [("png", png) for png in pngs] + [(k, rgb) for k in ("jpeg", "bmp", "tiff")]:
        buffer = io.BytesIO()
        image.save(buffer, format=kind)
        files.append((kind, buffer.getvalue()))
    return files


@settings(few, max_examples=300)
@given(st.sampled_from(valid_files()), changes)
@pytest.mark.filterwarnings("ignore")
def test_damaged_images_are_named_errors(tmp_path, file, steps):
    kind, data = file
    path = tmp_path / f"image.{kind}"
    path.write_bytes(mutate(data, steps))
    for found in arrays_or_named_errors(path, READERS):
        assert found.dtype == np.uint8 and found.ndim in (2, 3)


@few
@given(st.binary(max_size=300))
@pytest.mark.filterwarnings("ignore")
def test_noise_is_no_image(tmp_path, data):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    for reader in READERS:
        with pytest.raises(DataError):
            reader(path)


# --- options --------------------------------------------------------------------------------

SCRIPTS = {"train": train, "label": label, "test": predict}
OPTION_WORDS = """--val-list --train-list --model --backbone --lightweight --pretrained
--pretrain-from --compile --checkpoints --amp --workers --debug --epochs --batch-size --lr
--weight-decay --class-weights --crop-size --use-pseudo-label --pseudo-label-root --resume
--checkpoint-every --accumulate --checkpoint-activations --cache --seed --tensorboard
--no-tensorboard --val-batch-size --tta --no-tta --load-from --save-mask --vote --min-confidence
--split --time-limit --test-batch-size --overwrite --no-such-option -x --"""
VALUE_WORDS = """0 1 2 -1 1.5 nan inf -inf 1e400 1e-400 0x10 1_0 ٣ ² 1,1,1 1,,2 , auto on off bf16
fp16 fcn pspnet hard soft test val disk ram %s %(prog)s {} @file ../.. /"""
OPTIONS, VALUES = OPTION_WORDS.split(), VALUE_WORDS.split()
words = st.one_of(
    st.sampled_from(OPTIONS),
    st.sampled_from(OPTIONS),
    st.sampled_from(VALUES),
    st.text(max_size=6).filter(lambda text: text not in ("-h", "--help")),
    st.builds(lambda a, b: f"{a}={b}", st.sampled_from(OPTIONS), st.sampled_from(VALUES)),
    st.integers(0, 5000).map(lambda digits: "9" * digits),
)


@settings(few, max_examples=100)
@given(st.sampled_from(sorted(SCRIPTS)), st.lists(words, max_size=6))
def test_option_strings_are_taken_or_refused(tmp_path, script, argv):
    # Where the options can be, the next thing to fail is the data set, which is not there.
    where = ["--data-root", tmp_path / "none", "--outdir", tmp_path, "--device", "cpu"]
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            SCRIPTS[script].main([str(part) for part in (*where, "--nproc", 1, *argv)])
        except UserError:
            assert not list(tmp_path.iterdir())
        except SystemExit as stop:
            # Short options may be joined: "-hx" asks for help, too.
            assert stop.code == 2 or (stop.code == 0 and any(a.startswith("-h") for a in argv))
        else:
            raise AssertionError("no error")
