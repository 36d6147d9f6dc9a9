"""The installed program, as a shell sees it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alignment_video.core import Study, read_log

PROGRAM = Path(sys.executable).with_name("alignment-video")


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program to its end."""
    return subprocess.run([str(PROGRAM), *arguments], cwd=cwd, capture_output=True, text=True, timeout=300)


def test_demo_makes_a_study(tmp_path: Path) -> None:
    """The demo ends well, every path it names is there, and a second run goes over the first."""
    done = run("demo", "--out", "here", "--ads", "1", "--seed", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    named = [tmp_path / line.strip() for line in done.stdout.split("Look at")[1].strip().splitlines()]
    assert len(named) >= 5 and all(path.is_file() and path.stat().st_size > 40 for path in named)
    before = {path: path.read_bytes() for path in named}
    again = run("demo", "--out", "here", "--ads", "1", "--seed", "5", cwd=tmp_path)
    assert again.returncode == 0 and {path: path.read_bytes() for path in named} == before
    study = Study(tmp_path / "here")
    assert [entry["event"] for entry in read_log(study.run_log)] == 2 * ["demo", "validate"]
    assert not list(study.root.rglob("*.part*")), "nothing half-written is left"


@pytest.mark.parametrize(
    ("code", "arguments", "said"),
    [
        (0, ["--version"], ""),
        (1, ["scenes", "ad.mp4", "--study", "x"], "ad.mp4: no such file"),
        (1, ["variants", "--study", "x"], "study x does not exist"),
        (1, ["train", "--study", "x", "training.lr=1"], "no setting is called 'training.lr'"),
        (1, ["train", "--study", "x", "--config", "none.yaml"], "config file none.yaml does not exist"),
        (1, ["demo", "--out", "file.txt"], "choose another folder with --out"),
        (1, ["demo", "--out", "full"], "choose another folder with --out"),
        (1, ["demo", "--out", "file.txt/x"], "file.txt"),
        (2, ["nonsense"], "nonsense"),
        (2, ["masks"], "--study"),
        (2, ["demo", "--ads", "0"], "--ads"),
        (2, ["design", "--baseline-rate", "4.2", "--lift", "0.1"], "--baseline-rate"),
    ],
)
def test_endings(tmp_path: Path, code: int, arguments: list[str], said: str) -> None:
    """0 done, 1 refused with one line and no traceback, 2 wrong usage."""
    (tmp_path / "file.txt").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    if code == 1:
        assert done.stderr.count("\n") == 1 and done.stderr.startswith("alignment-video: ")
    assert (tmp_path / "file.txt").read_text() == (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_the_program_starts_light(tmp_path: Path) -> None:
    """Asking for help loads no deep-learning library, no video library and no tables."""
    heavy = ("torch", "cv2", "pandas", "av", "matplotlib", "omegaconf")
    code = f"import sys, alignment_video.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_stopped_demo_can_be_run_again(tmp_path: Path, how: signal.Signals) -> None:
    """Stopped while it films, the demo leaves no half video, and the next run ends as if nothing had happened."""
    command = [str(PROGRAM), "demo", "--out", "here", "--ads", "1", "--seed", "5"]
    stopped = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs inherit none
    )  # fmt: skip
    videos, deadline = tmp_path / "here" / "data" / "videos", time.monotonic() + 60
    while not list(videos.glob(".*.part.mp4")):
        assert stopped.poll() is None and time.monotonic() < deadline, "the demo never began to film"
        time.sleep(0.01)
    stopped.send_signal(how)
    _, said = stopped.communicate(timeout=60)
    whole = {path: path.read_bytes() for path in videos.glob("[!.]*.mp4")}  # on a busy machine the signal may come late
    if how == signal.SIGINT:
        assert stopped.returncode == 130 and said.count("\n") == 1 and {*videos.iterdir()} == {*whole}, said
    again = run("demo", "--out", "here", "--ads", "1", "--seed", "5", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert len(list(videos.glob("*.mp4"))) == 1 and not list((tmp_path / "here").rglob(".*.part*"))
    assert all(path.read_bytes() == content for path, content in whole.items()), "a video appeared before it was whole"


def test_train_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    assert run("demo", "--out", "here", cwd=tmp_path).returncode == 0
    small = [
        "backbone=mini", "data.image_size=[64,64]", "data.train_fraction=0.5", "data.num_workers=0",
        "training.batch_size=2", "training.save_every=2", "training.validate_every=2", "training.max_steps=4",
        "model.controlnet.base_channels=8",
    ]  # fmt: skip
    done = run("train", "--study", "here", *small, cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("4 steps; loss on held-out scenes"), (
        done
    )
    study = Study(tmp_path / "here")
    weights = study.training / "adapter" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    assert run("train", "--study", "here", *small, cwd=tmp_path).returncode == 0 and weights.read_bytes() == before
    other = run("train", "--study", "here", *small, "training.batch_size=3", cwd=tmp_path)
    assert other.returncode == 1 and "batch" in other.stderr and other.stderr.count("\n") == 1
    alone = run("train", "--study", "here", *small[:2], "data.train_fraction=1", cwd=tmp_path)
    assert alone.returncode == 1 and "split 'validation' is empty" in alone.stderr
