"""Write submission masks: an ensemble predicts the test set, with scores where labels exist.

example:
  python test.py --tta --time-limit 400 --checkpoints outdir/models/pspnet_hrnet_w40_39.37.pth \\
      outdir/models/pspnet_hrnet_w18_38.74.pth
"""

from collections.abc import Sequence
from typing import Any

from engine.config import TestConfig
from utils.cli import run, start


def main(argv: Sequence[str] | None = None) -> Any:
    """Predict, and return the scores; None without labels or where several processes worked."""
    return start(__file__, __doc__, TestConfig, "engine.testing:test", argv)


if __name__ == "__main__":
    run(main)
