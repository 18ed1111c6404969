"""pytorch-pretrained-biggan's generator: its 126 layers of spectral norm, live and from a file."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from tests.helpers.biggan import generator
from tests.helpers.states import same
from wnconvert import fold_file, fold_module, folded


def test_all_layers_of_biggan_fold_with_their_eps_left_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, x = generator(16)
    plain: Any = folded(model, kinds="spectral")
    with torch.no_grad():
        torch.testing.assert_close(plain(*x), model(*x), rtol=1e-4, atol=1e-5)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    fold_file(tmp_path / "in.pt", tmp_path / "out.pt", kinds="spectral", verify=True)
    state = torch.load(tmp_path / "out.pt")
    assert len(fold_module(model, kinds="spectral")) == 126
    model.load_state_dict(state, strict=True)
    assert all(same(value, plain.state_dict()[name]) for name, value in state.items())
