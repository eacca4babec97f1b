"""What the trainer tells about numbers that go wrong, and what TensorBoard gets to show."""

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from engine.runtime import Precision
from engine.training import Trainer
from models.change_detector import ModelConfig, build_model
from models.losses import ChangeCriterion
from utils.dist import World

ALONE = World(0, 1, torch.device("cpu"))


class HalvingScaler:
    """A loss scaler that finds an overflow in every step."""

    def __init__(self) -> None:
        self.value = 65536.0

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Skip the step."""

    def update(self) -> None:
        self.value /= 2

    def get_scale(self) -> float:
        return self.value


def test_repeated_overflow_is_reported(capsys):
    model = build_model(ModelConfig("fcn", "mobilenetv3_small_050"))
    precision = Precision("off", ALONE.device)
    trainer = Trainer(model, ChangeCriterion(6), 1e-4, 0, 20, ALONE, precision)
    image = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    label = torch.ones(2, 32, 32, dtype=torch.uint8)
    batch = {"image1": image, "image2": image, "label1": label, "label2": label}
    batch |= {"change_mask": label, "name": ["a", "b"]}
    for steps, reported in ((3, False), (6, True)):
        precision.scaler = HalvingScaler()
        trainer.validated = True
        trainer.begin_epoch()
        trainer.train_epoch([batch] * steps, lambda: None)
        assert ("fp16 overflowed repeatedly" in capsys.readouterr().out) == reported


def test_tensorboard_gets_scalars_and_panels(sample_root, tmp_path):
    options = ["--data-root", str(sample_root), "--outdir", str(tmp_path), "--workers", "0"]
    train.main([*options, "--backbone", "mobilenetv3_small_050", "--model", "fcn", "--epochs", "2"])
    (folder,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [event.step for event in events.Images("validation")] == [1, 2]
    assert [event.step for event in events.Scalars("score")] == [1, 2]
    assert "iou_building" in events.Tags()["scalars"]
