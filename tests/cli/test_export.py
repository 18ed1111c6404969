"""wnconvert export and check as a user runs them: exit codes, streams, weights, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.cli.test_files import VARIABLES, environment
from tests.helpers.export_models import scripted, vocoder
from tests.helpers.golden import FIXTURES, ROOT
from tests.helpers.tool import Ended, run_here

MODELS = "tests.helpers.export_models"
OLDER = ("--exporter", "torchscript")
MEL = ("--input", "mel=float32[1,4,T]", "--range", "T=4..20")


def run(*arguments: str | Path) -> Ended:
    return run_here(*arguments, folder=ROOT, variables=VARIABLES)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "g_1"
    torch.save({"generator": vocoder("legacy", seed=9).state_dict(), "epoch": 3}, path)
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, weights: Path) -> Path:
    path = tmp_path_factory.mktemp("exported") / "m.onnx"
    done = run("export", f"{MODELS}:Vocoder", "-o", path, "--weights", weights, *MEL)
    assert done.returncode == 0, done.stderr
    assert "equal to Vocoder, unfolded" in done.stdout
    assert "no weight norm left" in done.stdout
    told = [line.split()[:2] for line in done.stderr.splitlines()]
    steps = ["build", "load", "try", "fold", "export", "fold", "name", "check", "run"]
    assert [step for step, _ in told] == [step for step in steps for _ in range(2)]
    assert {seconds for _, seconds in told[::2]} == {"..."}
    assert "..." not in {seconds for _, seconds in told[1::2]}
    return path


def test_check_of_what_was_exported_is_0_and_of_other_weights_1(exported: Path, weights: Path) -> None:
    done = run("check", exported, f"{MODELS}:Vocoder", "--weights", weights, *MEL)
    assert done.returncode == 0
    assert "equal to Vocoder" in done.stdout
    other = run("check", exported, f"{MODELS}:vocoder", "--kwargs", '{"seed": 1}', *MEL, "--json")
    assert other.returncode == 1
    report = json.loads(other.stdout)
    assert report["equal"] is False
    assert report["outputs"][0]["passed"] is False
    assert report["notes"] == ["no --weights are given: the model keeps the weights of its factory"]
    assert [step["name"] for step in report["steps"]] == ["build", "check", "try", "run"]


def test_silent_says_nothing_and_what_the_model_prints_is_no_output(tmp_path: Path) -> None:
    (tmp_path / "chatty.py").write_text(
        "from tests.helpers.export_models import vocoder\nprint('from the module')\n"
        "import os\ndef make():\n    print('from the factory')\n    os.write(1, b'from C\\n')\n"
        "    return vocoder()\n"
    )
    model = f"{tmp_path}/chatty.py:make"
    done = run("export", model, "-o", tmp_path / "m.onnx", *MEL, *OLDER, "--json")
    assert json.loads(done.stdout)["equal"] is True
    assert "from the factory" in done.stderr
    assert "from C" in done.stderr
    quiet = run("export", model, "-o", tmp_path / "q.onnx", *MEL, *OLDER, "--silent")
    assert (quiet.returncode, quiet.stdout) == (0, "")
    assert set(quiet.stderr.splitlines()) == {"from the module", "from the factory", "from C"}


@pytest.mark.parametrize("kind", ["weights", "model"])
def test_what_is_exported_is_never_replaced(tmp_path: Path, weights: Path, kind: str) -> None:
    own = tmp_path / "own.pt"
    own.write_bytes(weights.read_bytes())
    model = (own,) if kind == "model" else (f"{MODELS}:Vocoder", "--weights", own)
    done = run("export", *model, "-o", own, "--force", *MEL)
    assert done.returncode == 2
    assert "this is the file to export" in done.stderr
    assert own.read_bytes() == weights.read_bytes()


def test_steps_that_nobody_can_read_do_not_end_an_export(tmp_path: Path) -> None:
    line = f"{sys.executable} -m wnconvert export {MODELS}:vocoder -o {tmp_path}/m.onnx"
    line += " --input 'mel=float32[1,4,T]' --exporter torchscript 2>/dev/full"
    done = subprocess.run(
        ["/bin/sh", "-c", line], env=environment(), cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0
    assert (tmp_path / "m.onnx").exists()


def test_an_interrupt_that_torch_swallows_is_one(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(
        "import os, signal\ndef make():\n    try:\n        os.kill(os.getpid(), signal.SIGINT)\n"
        "        import time; time.sleep(5)\n    except KeyboardInterrupt:\n        pass\n"
        "    raise RuntimeError('half imported')\n"
    )
    command = [sys.executable, "-m", "wnconvert", "export", f"{tmp_path}/late.py:make", *MEL]
    done = subprocess.run(
        [*command, "-o", tmp_path / "m.onnx"],
        capture_output=True,
        text=True,
        env=environment(),
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    said = done.stderr.splitlines()[-1]
    assert (done.returncode, said) == (130, "interrupted; nothing is left half written")


def test_what_differs_is_1_and_leaves_no_file(tmp_path: Path) -> None:
    arguments = ("export", f"{MODELS}:vocoder", "-o", tmp_path / "m.onnx", *MEL, *OLDER, "--atol", "0")
    done = run(*arguments, "--rtol", "0")
    assert done.returncode == 1
    assert "different from" in done.stdout
    assert "would have passed" in done.stdout
    assert "m.onnx, not written: " in done.stdout
    assert not [*tmp_path.iterdir()]
    kept = run(*arguments, "--rtol", "0", "--keep-failed")
    assert kept.returncode == 1
    assert [path.name for path in tmp_path.iterdir()] == ["m.failed.onnx"]
    assert "m.failed.onnx" in kept.stderr
    onnx.checker.check_model(str(tmp_path / "m.failed.onnx"))


@pytest.mark.parametrize(
    ("arguments", "says", "fix"),
    [
        ((f"{MODELS}:vocodr", *MEL), "it has no vocodr", "did you mean vocoder"),
        (("no_such:f", *MEL), "there is no module no_such", "path/to/file.py:factory"),
        ((f"{MODELS}:vocoder", "--kwargs", "{'a'}", *MEL), "--kwargs is not JSON", "such as"),
        ((f"{MODELS}:vocoder", "--input", "mel=float32(1,4)"), "mel=float32(1,4)", "such as"),
        ((f"{MODELS}:vocoder", "--input", "mle=float32[1,4,9]"), "no input 'mle'", "did you mean mel?"),
        ((f"{MODELS}:vocoder", *MEL, "--weights", "no.pt"), "no.pt: there is no such file", "check the path"),
        ((f"{MODELS}:Speech", "--input", "mel=float32[1,4,9]"), "forward needs ids too", "--input 'ids="),
        ((f"{MODELS}:Noisy", "--input", "x=float32[2,8]"), "stochastic", "noise"),
        (
            (f"{MODELS}:Eigen", "--input", "x=float32[4,4]"),
            "layer inner.1: torch's exporter refused",
            "--opset",
        ),
        (
            (f"{MODELS}:vocoder", *MEL, "--output-name", "a", "--output-name", "b"),
            "the model has 1",
            "--output-name NAME",
        ),
    ],
)
def test_what_cannot_be_meant_is_2_with_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], says: str, fix: str
) -> None:
    done = run("export", *arguments, *OLDER, "-o", tmp_path / "m.onnx")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert says in error
    assert hint.startswith("fix: ")
    assert fix in hint
    assert not [*tmp_path.iterdir()]


def test_weights_that_do_not_fit_are_listed(tmp_path: Path, weights: Path) -> None:
    done = run(
        "export",
        f"{MODELS}:Vocoder",
        "--kwargs",
        '{"channels": 3}',
        "--weights",
        weights,
        *MEL,
        "-o",
        tmp_path / "m",
    )
    assert done.returncode == 2
    assert "shape: conv_pre.weight: [6,4,3] in the file, [3,4,3] in the model" in done.stderr


def test_a_target_that_is_there_is_told_before_anything_is_exported(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("mine")
    done = run("export", f"{MODELS}:vocoder", *MEL, "-o", tmp_path / "m.onnx")
    assert done.returncode == 2
    assert "it exists" in done.stderr
    assert "export  " not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("export", "--input", "mel=float32[1,4"), "mel=float32[1,4"),
        (("export", *MEL, "--range", "L=3..4"), "no input has the size L"),
        (("export", *MEL, "--output-name", "a", "--output-name", "a"), "two outputs are called a"),
        (("export", *MEL, "--output-name", ""), "this is not a name"),
        (("export", *MEL, "--kwargs", "{"), "--kwargs is not JSON"),
        (("export", *MEL, "--weights", "no.pt"), "no.pt: there is no such file"),
        (("export", *MEL, "--seed", str(2**40)), "is not a seed"),
        (("check", *MEL, "--output-name", "a", "--output-name", "a"), "two outputs are called a"),
        (("check", *MEL), "no.onnx: there is no such file"),
    ],
)
def test_a_slip_is_told_before_the_models_own_code_runs(
    tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    (tmp_path / "slow.py").write_text("print('it runs')\nmake = None\n")
    verb, *others = arguments
    model = f"{tmp_path}/slow.py:make"
    first = ("no.onnx", model) if verb == "check" else (model, "-o", tmp_path / "m.onnx")
    done = run(verb, *first, *others)
    assert done.returncode == 2
    assert says in done.stderr
    assert "it runs" not in done.stderr


#: An input, and what is said of it where forward takes mel and ids.
SLIPS = {
    "name": ("mle=float32[1,T]", "no input 'mle'"),
    "none": ("", "the model needs its inputs: mel, ids"),
    "lacking": ("mel=float32[1,T]", "forward needs ids too"),
    "file": ("mel=float32[1,T]=@absent.npz", "absent.npz"),
    "dtype": ("mel=float23[1,T]", "no dtype is called float23"),
    "axis": ("mel=float32[1,T?]", "'T?' is not a size"),
    "values": ("mel=float32[3]=0,1", "2 values do not fit the shape [3]"),
    "tied": ("mel=int64[1]=L", "no input has the size L"),
}


@pytest.mark.parametrize("slip", SLIPS)
@pytest.mark.parametrize("verb", ["export", "check", "recipe", "fold"])
def test_inputs_that_a_model_does_not_take_are_told_before_it_is_built(
    tmp_path: Path, verb: str, slip: str
) -> None:
    asked, says = SLIPS[slip]
    (tmp_path / "net.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def forward(self, mel, ids): pass\n"
        "def make() -> Net:\n    open('built', 'w')\n    return Net()\n"
    )
    model = f"{tmp_path}/net.py:make"
    words: dict[str, tuple[str | Path, ...]] = {
        "export": (model, "-o", tmp_path / "m.onnx"),
        "check": (FIXTURES / "tcn.onnx", model),
        "recipe": (model,),
        "fold": (FIXTURES / "plain.pt", "--model", model, "-o", tmp_path / "out.pt"),
    }
    done = run_here(verb, *words[verb], *(("--input", asked) if asked else ()), folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["net.py"]


def test_the_list_of_inputs_needs_no_output_and_says_what_to_type(tmp_path: Path) -> None:
    done = run("export", f"{MODELS}:Speech", "--list-inputs")
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in table[2:5]] == [["mel", "yes"], ["ids", "yes"], ["gain", "no"]]
    assert last == "Speech: --input 'mel=float32[1,80,T]' --input 'ids=int64[1,L]<100'"
    assert run("export", f"{MODELS}:Speech", "--list-inputs", "--quiet").stdout.splitlines() == [last]
    scripted(torch.nn.Linear(3, 2)).save(str(tmp_path / "script.pt"))
    listed = json.loads(run("export", tmp_path / "script.pt", "--list-inputs", "--json").stdout)
    assert listed["built"] is True
    assert [each["text"] for each in listed["arguments"]] == ["input=float32[…]"]
    lacking = run("export", f"{MODELS}:Speech", *MEL)
    assert lacking.returncode == 2
    assert "-o" in lacking.stderr


def test_inputs_of_the_users_are_named_and_a_wrong_file_is_told_before_the_models_code_runs(
    exported: Path, weights: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "own.npz", mel=np.ones((1, 4, 9), np.float32))
    np.savez(tmp_path / "other.npz", x=np.ones((1, 4, 9), np.float32))
    asked = ("check", exported, f"{MODELS}:Vocoder", "--weights", weights, *MEL)
    done = run(*asked, "--inputs", tmp_path / "own.npz", "--quiet")
    assert done.returncode == 0, done.stderr
    assert f"on 4 samples (T = 4, 20, 13, 7), {tmp_path}/own.npz (T = 9), within" in done.stdout
    assert "elements outside" in done.stdout
    for more, says in (
        (("--inputs", tmp_path / "other.npz"), "no input is called x"),
        (("--inputs", tmp_path / "absent.npz"), "No such file"),
        (("--outliers", "1e-5"), "--min-snr"),
    ):
        done = run("check", exported, f"{MODELS}:broken", *MEL, *more)
        assert done.returncode == 2
        assert says in done.stderr
