"""The options of compare.py. Imports nothing heavy."""

from pathlib import Path

from engine.config import MODELS, OUTDIR
from utils.cli import option, options, positive_int
from utils.errors import OptionError

REFERENCE = "reference"  # name of the baseline among the variants
TEACHERS = "hrnet_w40,hrnet_w40,hrnet_w48,hrnet_w48,hrnet_w64"
FORMATS = ("auto", "bf16", "fp16", "off")


@options("networks")
class NetworkOptions:
    """Which models run, and how."""

    backbone: str = option("hrnet_w18", "of train and infer", metavar="NAME")
    backbones: str = option(TEACHERS, "ensemble of label, with commas", metavar="NAMES")
    models: int = option(2, "of infer", positive_int)
    model: str = option("pspnet", "heads", choices=MODELS)
    lightweight: bool = option(False, "lightweight heads")
    checkpoints: tuple[Path, ...] = option(
        (), "trained models for infer and label", nargs="+", shown="random weights"
    )
    views: int = option(6, "of infer and label", int, choices=(1, 6))
    amp: str = option("auto", "number format of our variants", choices=FORMATS)
    compile: bool = option(False, "compare a third variant, compiled by inductor")
    checkpoint_activations: bool = option(False, "in our training step")


@options("pairs")
class PairOptions:
    """What they run on."""

    size: int = option(256, "side of the images", positive_int, metavar="PIXELS")
    batch_size: int = option(8, "pairs per batch", positive_int)
    pairs: int = option(8, "files of label and load", positive_int)
    data_root: Path | None = option(None, "real pairs instead of generated scenes", metavar="DIR")


@options("measurement")
class Options(PairOptions, NetworkOptions):
    """What is compared, and how it is measured.

    Raises:
        OptionError: options that exclude each other.
    """

    what: str = option(
        None, "what to compare", choices=("train", "infer", "label", "load"), required=True
    )
    rounds: int = option(3, "A B, A B, …", positive_int)
    repeat: int = option(1, "batches or steps per round, where one is too short", positive_int)
    memory: bool = option(True, "measure peak memory of train and infer, in a process of its own")
    profile: bool = option(False, "show where our variant spends time")
    device: str = option("auto", "as in train.py", metavar="NAME")
    out: Path = option(None, "JSON", shown="outdir/bench/WHAT.json")
    debug: bool = option(False, "show the traceback of an error")

    def __post_init__(self) -> None:
        if self.checkpoints and self.what in ("train", "load"):
            raise OptionError("--checkpoints is for infer and label")
        if self.compile and self.what == "load":
            raise OptionError("--compile: nothing to compile in load")
        if self.compile and self.checkpoint_activations:
            raise OptionError("--compile and --checkpoint-activations: leave one out")
        chosen = {"out": self.out or OUTDIR / "bench" / f"{self.what}.json"}
        if self.what == "load":
            chosen |= {"device": "cpu", "amp": "off"}
        for name, value in chosen.items():
            object.__setattr__(self, name, value)

    @property
    def networks(self) -> tuple[str, ...]:
        """The backbones of the models that are needed."""
        if self.what == "label":
            return tuple(self.backbones.split(","))
        return (self.backbone,) * (self.models if self.what == "infer" else 1)
