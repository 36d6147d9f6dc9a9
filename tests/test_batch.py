"""Many videos: processes and machines that end on the way, what cannot work, and what a run says at its end."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment_video import batch
from alignment_video.batch import Cluster, Distant, Here, Processes, Task, Try, batch_table, run_videos
from alignment_video.core import Refused, Study, load_config, study_config, write_text
from alignment_video.stimuli import read_manifest, versions
from alignment_video.tables import read_table
from alignment_video.unbroken import BY_RULE, files_of, kill_runs, small_study, two_machines

PROGRAM = str(Path(sys.executable).with_name("alignment-video"))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Study, list[str], dict[str, bytes]]:
    """A study of three ads; their names; and its files when one worker has made their films."""
    study = small_study(tmp_path_factory.mktemp("batch") / "study", 3, BY_RULE)
    names = sorted(path.stem for path in study.videos.glob("*.mp4"))
    made = Study(shutil.copytree(study.root, study.root.with_name("made")))
    task = task_of(made)
    assert {one.state for one in run_videos(task, names, Here(task))} == {"made"}
    return study, names, files_of(made)


@pytest.fixture
def world(original, tmp_path) -> tuple[Study, list[str], dict[str, bytes]]:
    """A copy of the study, to be worked in."""
    return Study(shutil.copytree(original[0].root, tmp_path / "study")), *original[1:]


def task_of(study: Study, *settings: str) -> Task:
    return Task(str(study.root), study_config(study, settings))


def edit(study: Study, *words: str) -> subprocess.CompletedProcess[str]:
    command = [PROGRAM, "edit", "--study", str(study.root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_worker_is_killed_and_another_makes_its_video(world):
    study, names, expected = world
    task = task_of(study)
    crew = Processes(task, 2)
    try:
        run = run_videos(task, names, crew)

        def kill_one() -> None:
            while not (busy := [name for name, what in crew.doing.items() if what]):
                time.sleep(0.01)
            os.kill(crew.people[busy[0]].process.pid, signal.SIGKILL)

        threading.Thread(target=kill_one).start()
        table = batch_table(list(run))
    finally:
        crew.close()
    assert table["state"].tolist() == ["made"] * 3 and sorted(table["video_id"]) == names
    assert sorted(table["tries"]) == [1, 1, 2]
    assert {name: there for name, there in files_of(study).items() if ".part" not in name} == expected


def test_a_video_that_always_ends_its_worker_fails_and_the_others_go_on(world):
    study, names, _ = world

    class Deadly(Here):
        """Loses its worker with the second video."""

        def wait(self) -> list[Try]:
            if self.asked == names[1]:
                self.asked = None
                return [Try(names[1], "lost", "its worker ended (code -9)")]
            return super().wait()

    task = task_of(study)
    table = batch_table(list(run_videos(task, names, Deadly(task), retries=2))).set_index("video_id")
    assert table.loc[names[1], ["state", "tries", "reason"]].tolist() == ["failed", 3, "its worker ended (code -9)"]
    assert (table.drop(names[1])["state"] == "made").all()


def test_workers_that_cannot_begin(world, monkeypatch):
    study, names, _ = world
    no_model = task_of(study, "video_editing.editor=adapter")
    crew = Processes(no_model, 2)
    try:
        with pytest.raises(Refused, match=r"no adapter in .*: train one"):
            list(run_videos(no_model, names, crew))
    finally:
        crew.close()
    monkeypatch.setattr(batch, "_serve", exit_at_once)
    crew = Processes(task_of(study), 2)
    try:
        with pytest.raises(Refused, match=r"workers end before they can begin \(code 7\).* use fewer"):
            list(run_videos(task_of(study), names, crew))
    finally:
        crew.close()


def exit_at_once(*_: Any) -> None:
    os._exit(7)


def test_workers_end_with_the_run_that_began_them(world):
    study, _, _ = world
    run = subprocess.Popen(
        [PROGRAM, "edit", "--study", str(study.root), "--workers", "2"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 120
    while len(children := _children(run.pid)) < 2:
        assert run.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    run.send_signal(signal.SIGKILL)
    run.wait()
    while any(Path(f"/proc/{child}").exists() and "Z" not in _state(child) for child in children):
        assert time.monotonic() < deadline, "workers go on although nobody waits for them"
        time.sleep(0.05)


def _children(process: int) -> list[int]:
    """The worker processes of a run (and not the one that Python starts to look after its resources)."""
    found = Path(f"/proc/{process}/task/{process}/children").read_text().split() if sys.platform == "linux" else []
    return [int(one) for one in found if b"spawn_main" in Path(f"/proc/{one}/cmdline").read_bytes()]


def _state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return "Z"


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_with_workers_and_a_damaged_video(world):
    study, names, expected = world
    damaged = study.video(names[1])
    damaged.write_bytes(damaged.read_bytes()[:3000])
    done = edit(study, "--workers", "2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("alignment-video: 1 video could not be used: ")
    assert str(damaged) in done.stderr and "How each video ended: " in done.stdout
    table = read_table(study.batch)
    assert table["state"].tolist() == ["failed", "made", "made"] and str(table["video_id"][0]) == names[1]
    for name in (names[0], names[2]):
        path = study.manifest(name)
        assert path.read_bytes() == expected[path.relative_to(study.root).as_posix()]


def test_a_full_disk_ends_the_run(world, monkeypatch):
    study, names, _ = world
    task = task_of(study)

    def no_space(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(study.stimuli / "x.mp4"))

    monkeypatch.setattr(batch, "make_stimuli", no_space)
    with pytest.raises(Refused, match=r"x\.mp4: No space left on device; 2 more videos were not begun"):
        list(run_videos(task, names, Here(task)))
    assert read_table(study.batch)["state"].tolist() == ["failed"]


def test_an_error_of_the_program_is_tried_again_and_kept(world, monkeypatch):
    study, names, _ = world
    task = task_of(study)
    monkeypatch.setattr(batch, "make_stimuli", lambda *_, **__: 1 / 0)
    table = batch_table(list(run_videos(task, names[:1], Here(task), retries=1)))
    assert table.loc[0, ["state", "tries", "reason"]].tolist() == ["failed", 2, "ZeroDivisionError: division by zero"]
    log = study.run_log.read_text()
    assert log.count('"broke"') == 2 and "in <lambda>" in log


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--ray", "127.0.0.1:9"), "--ray 127.0.0.1:9: no cluster answers there"),
        (("--ray", "cluster"), "write host:port as 'ray start --head' says it"),
        (("--dry-run", "--ray", "auto"), "--dry-run --ray: a dry run counts what is planned"),
        (("--dry-run", "--workers", "2"), "--dry-run --workers"),
    ],
)
def test_what_cannot_be_asked_for(world, words, said):
    done = edit(world[0], *words)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_commands_wait_for_each_other(world):
    study, _, _ = world
    run = subprocess.Popen([PROGRAM, "edit", "--study", str(study.root)], stdout=subprocess.DEVNULL)
    while not (study.lock.is_file() and study.lock.stat().st_size):
        assert run.poll() is None
        time.sleep(0.01)
    for command in ("masks", "variants", "validate", "check", "edit"):
        done = subprocess.run(
            [PROGRAM, command, "--study", str(study.root)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and f"'edit' (process {run.pid}) is at work in it" in done.stderr, done.stderr
        assert run.poll() is None, "the run was over before the others were tried"
    assert run.wait() == 0


# --- killed runs ------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(tmp_path):
    found = kill_runs(tmp_path, 2, in_a_row=3)
    assert [kill.killed for kill in found] == [1, 1, 3]
    assert [(kill.half, kill.differ) for kill in found] == [(0, 0)] * 3


# --- machines ---------------------------------------------------------------------------------------------------------


def test_two_nodes_twelve_videos_and_one_node_killed(tmp_path):
    pytest.importorskip("ray")
    found = two_machines(tmp_path, 12, BY_RULE)
    states = [row["state"] for row in found["table"]]
    assert states.count("made") == 12 and states.count("failed") == 1 and found["same states"]
    assert len({row["video_id"] for row in found["table"]}) == 13
    assert found["lost"] >= 1 and found["differ"] == 0 and found["films"] == 12 * 11
    assert "cut off" in found["table"][0]["reason"] and found["table"][0]["state"] == "failed"


class OtherRay:
    """What `Cluster` uses of Ray, with machines whose answers are given."""

    def __init__(self, answers: list[Any], cpus: float = 2):
        self.answers, self.cpus, self.killed = answers, cpus, 0
        self.exceptions = SimpleNamespace(RayError=ConnectionResetError)

    def nodes(self) -> list[Any]:
        return [{"Alive": True, "Resources": {"CPU": self.cpus}} for _ in self.answers]

    def remote(self, **_: Any) -> Any:
        one = SimpleNamespace(
            begin=SimpleNamespace(remote=lambda: ("begin", self.answers.pop(0))),
            make=SimpleNamespace(remote=lambda video: ("make", Try(video, "made"))),
        )
        return lambda _: SimpleNamespace(options=lambda **_: SimpleNamespace(remote=lambda _: one))

    def wait(self, asked: list[Any], timeout: float | None = None) -> Any:
        return asked[:1], asked[1:]

    def get(self, answer: Any) -> Any:
        if isinstance(answer[1], Exception):
            raise answer[1]
        return answer[1]

    def kill(self, _: Any) -> None:
        self.killed += 1

    def shutdown(self) -> None:
        pass


def pretend(monkeypatch, study: Study, *answers: Any, **how: Any) -> tuple[Cluster, OtherRay]:
    ray = OtherRay(list(answers), **how)
    monkeypatch.setattr(batch, "_join", lambda address: ray)
    return Cluster(task_of(study), "somewhere:1"), ray


class Frozen(dict):
    """A mapping that can be in a set of answers."""

    def __hash__(self) -> int:
        return 0


def test_a_machine_that_cannot_work_is_named_and_others_go_on(world, monkeypatch):
    study, names, _ = world
    other = Frozen(versions() | {"torch": "1.0"})
    crew, ray = pretend(
        monkeypatch,
        study,
        ("no adapter in x", "one", Frozen(versions())),
        ("", "two", other),
        ("", "three", Frozen(versions())),
    )
    table = batch_table(list(run_videos(crew.task, names, crew)))
    assert table["state"].tolist() == ["made"] * 3 and ray.killed == 2
    assert crew.notes[0] == "machine one is not used: no adapter in x"
    assert crew.notes[1].startswith("machine two is not used: it has other versions: torch 1.0 (here ")


def test_no_machine_that_can_work(world, monkeypatch):
    study, names, _ = world
    crew, _ = pretend(monkeypatch, study, ("no adapter in x", "one", Frozen(versions())))
    with pytest.raises(Refused, match="machine one is not used: no adapter in x"):
        list(run_videos(crew.task, names, crew))
    with pytest.raises(Refused, match=r"no machine of the cluster has 2 processors .*batch.cpus"):
        pretend(monkeypatch, study, ("", "one", Frozen(versions())), cpus=1)


def test_gpus_are_shared_out():
    from alignment_video.batch import room

    nodes = [{"CPU": 16.0, "GPU": 2.0}, {"CPU": 8.0}, {"CPU": 3.0, "GPU": 4.0}]
    assert room(nodes, cpus=2, gpus=0) == 8 + 4 + 1
    assert room(nodes, cpus=2, gpus=1) == 2 + 0 + 1
    assert room(nodes, cpus=2, gpus=0.5) == 4 + 0 + 1
    assert room([{"CPU": 64.0, "GPU": 3.0}], cpus=1, gpus=0.3) == 9  # not ten: a worker's share is of one GPU
    assert room([{"CPU": 64.0, "GPU": 8.0}], cpus=1, gpus=2) == 4


def test_a_distant_worker_says_what_keeps_it(world, monkeypatch, tmp_path):
    ray = SimpleNamespace(get_runtime_context=lambda: SimpleNamespace(get_node_id=lambda: "abcdefgh"))
    monkeypatch.setattr(batch, "_ray", lambda: ray)
    study, names, _ = world
    why, name, theirs = Distant(replace(task_of(study), root=str(tmp_path / "elsewhere"))).begin()
    assert "elsewhere is not there; every machine has to see it, under the same path" in why and "abcdef" in name
    assert theirs == versions()
    able = Distant(task_of(study))
    assert able.begin()[0] == "" and able.make(names[0]).state == "made"
    assert read_manifest(study, names[0])["stimuli"]


def test_without_ray(monkeypatch):
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(Refused, match=r"pip install .alignment_video\[cluster\]"):
        batch._join("auto")


def test_settings_of_a_batch(tmp_path):
    path = tmp_path / "c.yaml"
    write_text(path, "batch: {workers: 2, gpus: 0.5, cpus: 4, retries: 0}\n")
    assert load_config(path).batch.gpus == 0.5
    with pytest.raises(Refused, match=r"batch\.cpus"):
        load_config(path, ["batch.cpus=0"])
