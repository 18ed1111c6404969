"""What docs/recipes.md says of Lightning, with Lightning itself."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from tests.helpers.golden import ROOT
from wnconvert import fold_file, inspect_file

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers, loggers and devices

PAGE = (ROOT / "docs" / "recipes.md").read_text()


def block(heading: str, first: str) -> str:
    """The python block below a heading of the recipes that begins with these words."""
    section = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    (found,) = re.findall(rf"```python norun\n({re.escape(first)}.*?)```", section, re.DOTALL)
    return str(found)


class Vocoder(lightning.LightningModule):
    """The least that trains: a generator with weight norm."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.save_hyperparameters()
        normed = nn.utils.parametrizations.weight_norm
        self.generator = nn.Sequential(
            normed(nn.Conv1d(4, width, 3)), nn.ReLU(), normed(nn.Conv1d(width, 1, 3))
        )
        self.seen: list[bool] = []

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        wave: torch.Tensor = self.generator(mel)
        return wave

    def training_step(self, mel: torch.Tensor, _: int) -> torch.Tensor:
        assert nn.utils.parametrize.is_parametrized(self.generator[0]), "training has g and v"
        loss: torch.Tensor = self(mel).square().mean()
        return loss

    def validation_step(self, mel: torch.Tensor, _: int) -> None:
        self.seen.append(nn.utils.parametrize.is_parametrized(self.generator[0]))
        self.log("val_loss", self(mel).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def trained(folder: Path, *callbacks: Any) -> Vocoder:
    torch.manual_seed(0)
    mels = torch.utils.data.DataLoader(torch.randn(8, 4, 20), batch_size=4)  # type: ignore[arg-type, var-annotated]
    model = Vocoder()
    saving = ModelCheckpoint(folder, save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", callbacks=[*callbacks, saving], **quiet)
    trainer.fit(model, mels, mels)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    trained(folder, EarlyStopping("val_loss", patience=99))
    return folder / "last.ckpt"


def test_settings_of_callbacks_are_no_state_dicts(checkpoint: Path) -> None:
    assert [state.path for state in inspect_file(checkpoint).state_dicts] == ["state_dict"]


def test_a_folded_checkpoint_is_loaded_as_the_recipe_says(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold_file(checkpoint, tmp_path / "last.folded.ckpt")
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {"Vocoder": Vocoder}
    exec(block("I have a Lightning checkpoint, and no Lightning", "import torch"), space)  # noqa: S102 - the page's
    mel = torch.randn(1, 4, 30)
    expected = Vocoder.load_from_checkpoint(checkpoint).eval()(mel)
    torch.testing.assert_close(space["model"].eval()(mel), expected)
    assert not nn.utils.parametrize.is_parametrized(space["model"].generator[0])


def test_the_callback_of_the_recipe_validates_with_folded_weights_and_changes_nothing_else(
    tmp_path: Path,
) -> None:
    space: dict[str, Any] = {}
    exec(block("I validate at every epoch, and weight norm costs time", "import lightning"), space)  # noqa: S102
    model = trained(tmp_path / "with", space["FoldedValidation"]())
    plain = trained(tmp_path / "without")
    assert plain.seen, "a comparison of nothing is a failure"
    assert set(plain.seen) == {True}
    assert set(model.seen) == {False}
    one, other = model.state_dict(), plain.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)
    saved = torch.load(tmp_path / "with" / "last.ckpt", weights_only=False)["state_dict"]
    assert list(saved) == list(one), "what is saved has g and v"
