"""Hostile images, names and lists are refused; nothing is written outside an outdir."""

import shutil
import struct
import zlib
from pathlib import Path

import pytest

import label
import test as predict
import train
from datasets.bands import RGB
from datasets.classes import SECOND_CLASSES
from datasets.images import image_size, read_bands
from datasets.labels import read_label
from tests.helpers.faults import assert_one_line, run_script
from tests.helpers.runs import keys, options, read_masks, train_options
from utils.errors import DataError, OptionError

# --- hostile images -------------------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    crc = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + crc


def write_bomb(path: Path, side: int) -> Path:
    """A PNG of a hundred bytes that says it has side × side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + body)
    return path


READERS = (
    image_size,
    lambda path: read_bands(path, RGB),
    lambda path: read_label(path, SECOND_CLASSES),
)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("side", [20_000, 2**31 - 1])
def test_decompression_bombs_are_refused(reader, side, tmp_path):
    path = write_bomb(tmp_path / "bomb.png", side)
    with pytest.raises(DataError, match=f"^{path}: ") as caught:
        reader(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", ["im1", "label2"])
def test_training_on_a_bomb_is_one_line(folder, broken_root, tmp_path, monkeypatch, capsys):
    path = write_bomb(broken_root / "train" / folder / "00003.png", 100_000)
    status, err = run_script(train, train_options(broken_root, tmp_path), monkeypatch, capsys)
    assert_one_line(status, err, f"{path}: ")


# --- names ----------------------------------------------------------------------------------

ODD_NAMES = ("a..b", "...", "~root", "%2e%2e%2fescape", "-rf", "a\nb", "$(touch x)", "c:\\d", "..x")


def tree(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_names_of_a_data_set_stay_inside_outdir(fcn_run, sample_root, tmp_path):
    place = tmp_path / "place"
    root, outdir, outside = place / "data", place / "deep" / "out", place / "outside"
    shutil.copytree(sample_root, root)
    shutil.rmtree(root / "val")
    outside.mkdir()
    for folder in (root / "train").iterdir():
        for source, name in zip(sorted(folder.iterdir()), ODD_NAMES, strict=False):
            source.rename(folder / f"{name}.png")
        # A link out of the data set is a way to share files, and it is only read.
        linked = sorted(folder.glob("000*.png"))[-1]
        target = outside / f"{folder.name}.png"
        linked.rename(target)
        linked.symlink_to(target)
    before = tree(place)
    label.main(options(root, outdir, "--checkpoints", fcn_run.best))
    argv = train_options(root, outdir, "--use-pseudo-label", "--save-mask", "--batch-size", 2)
    train.main(argv)
    after = tree(place)
    written = set(after) - set(before)
    assert written and all(path.is_relative_to(outdir) for path in written)
    assert {path: after[path] for path in before} == before
    # Names that begin with a dot are hidden files, not images.
    masks, images = (
        {path.stem for path in (folder / "train/im1").glob("[!.]*.png")}
        for folder in (outdir / "masks", root)
    )
    assert masks == images


def test_masks_go_through_no_link_into_a_data_set(sample_root, tmp_path):
    link = tmp_path / "masks" / "train" / "im1"
    link.parent.mkdir(parents=True)
    link.symlink_to(sample_root / "train" / "im1")
    with pytest.raises(OptionError, match="im1 lies in a data set"):
        label.main(options(sample_root, tmp_path))


@pytest.mark.parametrize("folder", ["im1", "label1"])
def test_no_folder_of_a_data_set_is_a_link_to_masks(folder, sample_root, tmp_path):
    root, masks = tmp_path / "root", tmp_path / "masks" / "train" / "im1"
    shutil.copytree(sample_root, root)
    masks.parent.mkdir(parents=True)
    (root / "train" / folder).rename(masks)
    (root / "train" / folder).symlink_to(masks)
    with pytest.raises(OptionError, match="lies in a data set"):
        label.main(options(root, tmp_path))


@pytest.mark.parametrize("line", ["../../../etc/passwd", "..", "/", ".", "train/../../x.png"])
def test_lists_name_pairs_of_the_data_set_alone(line, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text(f"{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"is no pair of the training folder|val\.txt: "):
        train.main(train_options(sample_root, tmp_path / "out", "--val-list", names))
    assert not (tmp_path / "out").exists()


def test_a_list_with_paths_is_a_list_of_names(fcn_run, sample_root, tmp_path):
    names = tmp_path / "val.txt"
    names.write_text("../../outside/00003.png\n/etc/00005.png\n", encoding="utf-8")
    more = ("--split", "val", "--val-list", names, "--checkpoints", fcn_run.best)
    predict.main(options(sample_root, tmp_path / "out", *more))
    assert set(read_masks(tmp_path / "out/masks/val")) == keys(["00003", "00005"])
    assert len(list(tmp_path.rglob("*.png"))) == 4


def test_a_mask_that_is_a_link_is_replaced_not_followed(fcn_run, sample_root, tmp_path):
    target = tmp_path / "precious.png"
    target.write_bytes(b"precious")
    mask = tmp_path / "out" / "masks" / "train" / "im1" / "00000.png"
    mask.parent.mkdir(parents=True)
    mask.symlink_to(target)
    label.main(options(sample_root, tmp_path / "out", "--checkpoints", fcn_run.best))
    assert target.read_bytes() == b"precious"
    assert not mask.is_symlink()
