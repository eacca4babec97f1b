"""Train a semantic change detector, or evaluate one with --load-from.

examples:
  CUDA_VISIBLE_DEVICES=0,1,2,3 python train.py --backbone hrnet_w18 --pretrained --model pspnet \\
      --lightweight
  python train.py --backbone hrnet_w18 --pretrained --model pspnet --lightweight --use-pseudo-label
  python train.py --load-from outdir/models/pspnet_hrnet_w18_38.74.pth --tta --save-mask
"""

from collections.abc import Sequence
from typing import Any

from engine.config import TrainConfig
from utils.cli import run, start


def main(argv: Sequence[str] | None = None) -> Any:
    """Train, and return the best validation scores; None where several processes did the work."""
    return start(__file__, __doc__, TrainConfig, "engine.training:main", argv)


if __name__ == "__main__":
    run(main)
