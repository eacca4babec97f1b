"""What a restart of label.py and test.py skips, and what it makes again."""

import json
import os
import time
from pathlib import Path

import pytest
import torch

import label
import test as predict
import train
from engine.predict import LEFTOVER_AGE_S, Manifest, file_signature, unlisted, work_key
from models.checkpoint import load_model
from utils.dist import World

ALONE = World(0, 1, torch.device("cpu"))
SMALL = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def outdir(sample_root, tmp_path_factory) -> Path:
    """An outdir with one trained checkpoint."""
    folder = tmp_path_factory.mktemp("manifest")
    options = ["--backbone", SMALL, "--model", "fcn", "--epochs", "1", "--no-tensorboard"]
    train.main([*work(sample_root, folder), *options])
    return folder


def work(root: Path, folder: Path) -> list[str]:
    return ["--data-root", str(root), "--outdir", str(folder), "--workers", "0", "--amp", "off"]


def times(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.glob("im*/*.png")}


def test_second_start_writes_nothing_and_counts_the_same(outdir, sample_root, capsys):
    options = [*work(sample_root, outdir), "--test-batch-size", "4"]
    first = label.main(options)
    before = times(outdir / "masks" / "train")
    second = label.main(options)
    assert times(outdir / "masks" / "train") == before
    assert "12 pairs were finished already" in capsys.readouterr().out
    assert torch.equal(first.labelled, second.labelled)
    assert torch.equal(first.voted, second.voted)


def test_scores_include_finished_pairs(outdir, sample_root, capsys):
    options = [*work(sample_root, outdir), "--test-batch-size", "2"]
    first = predict.main(options)
    folder = outdir / "masks" / "test"
    kept = times(folder)
    (folder / "im1" / "00003.png").unlink()
    assert predict.main(options) == first
    changed = {name for name, time in times(folder).items() if time != kept.get(name)}
    # The whole batch of two is made again, so that its pixels are what they were.
    assert changed == {f"im{date}/{name}.png" for date in (1, 2) for name in ("00002", "00003")}
    capsys.readouterr()
    assert predict.main(options) == first
    assert " 0.0 pairs/s)" in capsys.readouterr().out  # of those predicted now


def test_other_options_or_overwrite_make_all_again(outdir, sample_root):
    folder = outdir / "masks" / "test"
    predict.main(work(sample_root, outdir))
    for more in (["--tta"], ["--overwrite"]):
        before = times(folder)
        predict.main([*work(sample_root, outdir), *more])
        assert all(time != before[name] for name, time in times(folder).items())


def test_a_changed_image_makes_its_batch_again(outdir, broken_root):
    options = [*work(broken_root, outdir), "--test-batch-size", "1"]
    predict.main(options)
    before = times(outdir / "masks" / "test")
    image = broken_root / "val" / "im2" / "00001.png"
    image.write_bytes(image.read_bytes())
    predict.main(options)
    after = times(outdir / "masks" / "test")
    assert {name for name in after if after[name] != before[name]} == {
        "im1/00001.png",
        "im2/00001.png",
    }


def test_journal_cut_off_in_a_line_loses_that_line_only(tmp_path):
    signatures = {"a": "1", "b": "2"}
    manifest = Manifest(tmp_path, "key", signatures, ALONE)
    for name in signatures:
        for date in ("im1", "im2"):
            (tmp_path / date).mkdir(exist_ok=True)
            (tmp_path / date / f"{name}.png").touch()
        manifest.add(name)
    manifest.close()
    journal = tmp_path / "manifest.0.jsonl"
    journal.write_text(journal.read_text(encoding="utf-8")[:-4], encoding="utf-8")
    assert Manifest(tmp_path, "key", signatures, ALONE).finished == {"a"}
    assert Manifest(tmp_path, "other key", signatures, ALONE).finished == set()


@pytest.mark.parametrize("damage", ["\0\0\0", "[[], 1]", "7", '["a"'])
def test_a_damaged_line_of_a_journal_loses_that_line_only(damage, tmp_path):
    write_journal(tmp_path, 0, "key", '["a", "1-2"]', damage, '["b", "1-2"]', "")
    assert unlisted(tmp_path, ["a", "b", "c"]) == ["c"]
    assert Manifest(tmp_path, "key", {}, ALONE).finished == set()


def test_half_written_masks_of_a_killed_run_go(outdir, sample_root):
    folder = outdir / "masks" / "train"
    left = [folder / "im1" / ".00001.png.abcd_1z9.tmp", folder / "im2" / ".a.b.png.00000000.tmp"]
    left.append(folder / ".metrics.json.abcdefgh.tmp")
    others = [folder / "im1" / name for name in (".00001.png.tmp", "00001.png.abcdefgh.tmp")]
    young = folder / "im2" / ".00001.png.abcdefgh.tmp"  # another program is writing it just now
    for path in (*left, *others, young):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
        if path != young:
            os.utime(path, (0, time.time() - 2 * LEFTOVER_AGE_S))
    label.main(work(sample_root, outdir))
    assert [path.exists() for path in (*left, *others, young)] == [False] * 3 + [True] * 3
    for path in (*others, young):
        path.unlink()


def test_keys_tell_checkpoints_apart(tmp_path):
    first, second = tmp_path / "a.pth", tmp_path / "b.pth"
    first.write_bytes(b"1")
    second.write_bytes(b"2")
    assert work_key({"tta": True}, [first]) != work_key({"tta": True}, [second])
    assert work_key({"tta": True}, [first]) != work_key({"tta": False}, [first])
    assert file_signature([first, None]) != file_signature([first, second])


def test_leakage_is_reported(outdir, sample_root, tmp_path, capsys):
    best = next(p for p in (outdir / "models").glob("*.pth") if "latest" not in p.stem)
    assert load_model(best).config.backbone == SMALL
    names = tmp_path / "val.txt"
    names.write_text("00001\n00002\n00005\n", encoding="utf-8")
    options = ["--checkpoints", str(best), "--val-list", str(names)]
    label.main([*work(sample_root, tmp_path / "out"), *options])
    printed = capsys.readouterr().out
    assert f"leakage: {best} was trained on 3 of the 3 validation pairs" in printed
    predict.main([*work(sample_root, tmp_path / "out"), *options, "--split", "val"])
    assert "warning: leakage" in capsys.readouterr().out
    predict.main([*work(sample_root, tmp_path / "out"), "--checkpoints", str(best)])
    assert "warning: leakage" not in capsys.readouterr().out


def test_half_written_checkpoints_of_a_killed_run_go(outdir, sample_root):
    models = outdir / "models"
    left = models / f".fcn_{SMALL}_latest.pth.abcdefgh.tmp"
    other = models / f".fcn_{SMALL}_wide_latest.pth.abcdefgh.tmp"  # of a longer backbone name
    for path in (left, other):
        path.write_bytes(b"half")
    options = ["--backbone", SMALL, "--model", "fcn", "--epochs", "1", "--no-tensorboard"]
    train.main([*work(sample_root, outdir), *options])
    assert not left.exists()
    assert other.exists()
    other.unlink()


def write_journal(folder: Path, rank: int, key: str, *lines: str) -> None:
    text = "".join(f"{line}\n" for line in (json.dumps({"key": key}), *lines))
    (folder / f"manifest.{rank}.jsonl").write_text(text.removesuffix("\n"), encoding="utf-8")


def test_pairs_that_the_last_work_has_not_finished(tmp_path):
    names = ["a", "b", "c", "d"]
    assert unlisted(tmp_path, names) == []  # masks made elsewhere
    write_journal(tmp_path, 0, "new", '["a", "1-2"]', "")
    write_journal(tmp_path, 1, "new", '["b", "1-2"]', '["c", "1-')  # cut off
    write_journal(tmp_path, 2, "old", '["d", "1-2"]', "")
    assert unlisted(tmp_path, names) == ["c", "d"]
    assert unlisted(tmp_path, ["b", "a"]) == []
