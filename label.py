"""Write pseudo masks: an ensemble votes a class for every pixel the ground truth leaves out.

example:
  python label.py --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/fcn_hrnet_w48_39.02.pth
"""

from collections.abc import Sequence
from typing import Any

from engine.config import LabelConfig
from utils.cli import run, start


def main(argv: Sequence[str] | None = None) -> Any:
    """Label ROOT/train and return the counts; None where several processes did the work."""
    return start(__file__, __doc__, LabelConfig, "engine.labelling:label", argv)


if __name__ == "__main__":
    run(main)
