import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import compare, machine, report
from bench.floor import count_work
from bench.options import Options
from datasets.bands import Bands, Imagery
from engine.config import REPO
from models.change_detector import ModelConfig, build_model
from utils.errors import OptionError, UserError
from utils.tensor_files import save_checkpoint

BACKBONE = "mobilenetv3_small_050"
SMALL = ["--size", "64", "--rounds", "2", "--device", "cpu", "--amp", "off", "--lightweight"]
COMMANDS = {
    "train": ["--backbone", BACKBONE, "--batch-size", "2"],
    "infer": ["--backbone", BACKBONE, "--models", "2", "--batch-size", "2"],
    "label": ["--backbones", f"{BACKBONE},{BACKBONE}", "--pairs", "3", "--batch-size", "2"],
    "load": ["--pairs", "3"],
}


@pytest.fixture(autouse=True)
def _small_measurements(monkeypatch):
    monkeypatch.setattr(machine, "RATE_SIDES", (64, 64))
    monkeypatch.setattr(machine, "COPY_BYTES", (2**16, 2**16))


def run(what: str, tmp_path, *more: object) -> dict:
    out = tmp_path / f"{what}.json"
    argv = ["--what", what, *SMALL, *COMMANDS[what], "--out", out, "--no-memory", *more]
    result = compare.main([str(word) for word in argv])
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written.keys() == result.keys()
    return written


def save_model(path: Path, **changes) -> Path:
    config = ModelConfig("fcn", BACKBONE, True, **changes)
    save_checkpoint(path, {"config": config.to_dict(), "model": build_model(config).state_dict()})
    return path


@pytest.mark.parametrize("what", COMMANDS)
def test_every_comparison_runs_and_writes_its_figures(what, tmp_path, capsys):
    result = run(what, tmp_path)
    assert (result["what"], result["size"]) == (what, 64)
    assert result["pairs"] == (3 if what in ("label", "load") else 2)
    assert {"cpu", "cores", "threads", "ram_gb", "units", "torch"} <= result["machine"].keys()
    assert list(result["variants"]) == ["reference", "ours"]
    times = [variant["seconds"] for variant in result["variants"].values()]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times)
    ratios = sorted(a / b for a, b in zip(*times, strict=True))
    ratio = result["variants"]["ours"]["ratio"]
    assert [ratio["min"], ratio["max"]] == pytest.approx(ratios)
    assert ratio["median"] == pytest.approx(sum(ratios) / 2)
    if what in ("infer", "label"):
        # Float32 on both sides: only sums are taken in another order.
        assert result["variants"]["ours"]["agreement"] > 0.99
    if what != "load":
        floor = result["floor"]
        assert floor["seconds"] == max(floor["arithmetic_s"], floor["memory_s"]) > 0
    if what == "label":
        (shares,) = result["waiting_share"].values()
        assert len(shares) == 2 and all(0 < share < 1 for share in shares)
    if what == "load":
        assert result["augmentation_ms_per_pair"] > 0
    printed = capsys.readouterr().out
    assert result["machine"]["torch"] in printed
    assert "round 2: reference" in printed


def test_profile_lists_the_largest_costs(tmp_path, capsys):
    rows = run("infer", tmp_path, "--profile")["profile"]
    shares = [row["share"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 1
    assert any("conv" in row["name"] for row in rows)
    assert "Self CPU" in capsys.readouterr().out


def test_one_view_on_real_pairs(tmp_path, write_pairs):
    write_pairs({name: (64, 64) for name in "abcd"}, tmp_path / "data" / "train")
    result = run("label", tmp_path, "--data-root", tmp_path / "data", "--views", "1")
    assert result["variants"]["ours"]["agreement"] > 0.99
    assert str(tmp_path) not in result["command"]


def test_what_the_baseline_cannot_run_is_refused(tmp_path, sample_root, binary_root):
    imagery = Imagery(Bands((1, 2, 3, 4)), (100,) * 4, (50,) * 4)
    bands = save_model(tmp_path / "bands.pth", in_channels=4, imagery=imagery)
    change = save_model(tmp_path / "change.pth", num_classes=0)
    for what, message, *options in (
        ("infer", "--size 100: the baseline takes multiples of 32", "--size", 100),
        ("infer", "the baseline reads 8-bit RGB", "--checkpoints", bands),
        ("label", "the baseline reads 8-bit RGB", "--checkpoints", change),
        ("train", "change masks; the baseline knows classes only", "--data-root", binary_root),
        ("load", "RGB; the baseline reads labels of indices only", "--data-root", sample_root),
        ("load", "13 are asked for", "--data-root", sample_root, "--pairs", 13),
        ("train", "--checkpoints is for infer and label", "--checkpoints", bands),
    ):
        with pytest.raises(OptionError, match=message):
            run(what, tmp_path, *options)


# Floors


def test_work_of_a_pair_follows_its_area():
    config = ModelConfig("fcn", "resnet18", True)
    small, large = count_work(config, 64, False), count_work(config, 128, False)
    assert large.flops == pytest.approx(4 * small.flops, rel=0.01)
    assert large.elements == pytest.approx(4 * small.elements, rel=0.01)
    assert count_work(config, 64, True).elements > small.elements  # batch norms are not folded


def test_work_of_a_known_network():
    # ResNet-18 without classifier: 1.81 G multiplications at 224 x 224, and as many additions.
    work = count_work(ModelConfig("fcn", "resnet18", True), 224, False)
    encoder = 2 * 2 * 1.81e9  # two dates
    assert encoder < work.flops < 2 * encoder  # the rest are the heads


def test_peak_memory_of_a_variant():
    options = Options(what="train", backbone=BACKBONE, lightweight=True, size=64, device="cpu")
    assert 10**7 < compare.peak_memory(options, "ours") < 10**9


def test_peak_memory_of_a_large_tensor():
    # In a fresh process: this one may have room left over from other tests.
    work = "lambda: torch.ones(2**24).add_(1)"  # 64 MiB
    code = (
        f"import torch; from bench import machine as m; d = torch.device('cpu'); "
        f"print(m.peak_bytes({work}, d))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, check=True)
    assert 2**26 <= int(done.stdout) < 2**27


# Tables


def test_tables_are_written_between_the_markers(tmp_path):
    path = save_model(tmp_path / "some.pth")
    result = run("infer", tmp_path, "--checkpoints", path)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        report.main([str(tmp_path / "infer.json"), "--into", str(page)])
    text = page.read_text(encoding="utf-8")
    assert re.fullmatch(rf"before\n{report.BEGIN}\n\*\*.*{report.END}\nafter\n", text, re.DOTALL)
    assert "old" not in text and text.count(result["command"]) == 1
    (row,) = [line for line in text.splitlines() if line.startswith("| infer")]
    assert row.count("|") == len(report.HEADER) + 1
    assert f"| infer, 1 × fcn {BACKBONE} lightweight, batch 2, 6 views, trained, 64² |" in row
    assert f"{100 * result['variants']['ours']['agreement']:.2f} %" in row


def test_files_of_something_else_are_refused(tmp_path):
    page = tmp_path / "page.md"
    for text in (None, "{", "[]", '{"what": "infer"}'):
        path = tmp_path / f"{text and len(text)}.json"
        if text:
            path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=rf"{path.name}: no result of compare.py"):
            report.main([str(path)])
    run("load", tmp_path)
    page.write_text("nothing\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"page.md: no <!-- bench: begin -->"):
        report.main([str(tmp_path / "load.json"), "--into", str(page)])
    assert page.read_text(encoding="utf-8") == "nothing\n"


def test_compiling_tells_when_it_pays():
    network = {"backbone": "hrnet_w18", "model": "pspnet", "lightweight": True}
    result = {
        "what": "infer",
        "size": 64,
        "amp": "bf16",
        "networks": [network],
        "options": {"views": 6, "batch_size": 4, "checkpoints": []},
        "variants": {"compiled": {"warmup_s": 30.2, "pays_after_pairs": 121.4}},
    }
    assert report.notes_of(result) == [
        "infer, 1 × pspnet hrnet_w18 lightweight, batch 4, 6 views, random weights, 64²: "
        "compiling took 30 s and pays after 121 pairs"
    ]
