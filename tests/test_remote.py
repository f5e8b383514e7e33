"""Devices behind a link: what is pushed, resumed, run, refused, and that nothing is left, whatever happens."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from far import Far, until

from edgeslm.devices.links import ConnectionLost
from edgeslm.devices.payload import Payload
from edgeslm.devices.remote import RemoteDevice
from edgeslm.errors import DeviceError

MB = 1 << 20


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model one.gguf"
    path.write_bytes(os.urandom(3 * MB))
    return path


def small(tmp_path: Path, name: str = "job.json", text: str = "{}") -> Path:
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_a_push_lies_by_its_content_and_is_sent_once(far: Far, model: Path) -> None:
    with far.device() as device:
        remote = device.push(model)
        payload = Payload(model)
        assert remote == f"{far.root}/{payload.sha256[:16]}/model one.gguf"
        assert Path(remote).read_bytes() == model.read_bytes()
        again = model.with_name("copy")
        shutil.copy(model, again)
        assert device.push(model) == remote and device.push(again) != remote  # another name is put beside nothing
        assert device.push(model) == remote
        assert far.received().count(3 * MB) == 3  # the same content under two names cannot be in one place
    assert far.left() == [] and not far.root.exists()


def test_what_was_kept_is_checked_and_not_sent_again(far: Far, model: Path) -> None:
    with far.device(keep=True) as device:
        remote = device.push(model)
    assert Path(remote).exists()
    with far.device(keep=True) as device:
        device.push(model)
    assert far.received().count(3 * MB) == 1
    with Path(remote).open("r+b") as file:  # storage went bad meanwhile
        file.seek(MB)
        file.write(b"damaged")
    with far.device() as device:
        assert Path(device.push(model)).read_bytes() == model.read_bytes()
    assert far.received().count(3 * MB) == 2 and not far.root.exists()


def test_keeping_keeps_models_only(far: Far, model: Path, tmp_path: Path) -> None:
    with far.device(keep=True) as device:
        remote, job = device.push(model), device.push(small(tmp_path))
        assert Path(job).exists()
    left = [path for path in far.left() if not Path(path).name.startswith(".")]
    assert left == sorted([Path(remote).parent.name, f"{Path(remote).parent.name}/model one.gguf"])
    with far.device() as device:
        device.begin()
    assert not far.root.exists()


def test_a_folder_goes_as_a_whole_with_executables(far: Far, tmp_path: Path) -> None:
    folder = tmp_path / "workers"
    (folder / "inner dir" / "__pycache__").mkdir(parents=True)
    (folder / "inner dir" / "__pycache__" / "a.pyc").write_bytes(b"x")
    (folder / "run").write_text("#!/bin/sh\necho ran\n")
    (folder / "run").chmod(0o755)
    (folder / "inner dir" / "weights.bin").write_bytes(os.urandom(2 * MB + 17))
    with far.device() as device:
        remote = Path(device.push(folder))
        assert remote.name == "workers" and sorted(p.name for p in remote.rglob("*") if p.is_file()) == [
            "run",
            "weights.bin",
        ]
        assert (remote / "inner dir/weights.bin").read_bytes() == (folder / "inner dir/weights.bin").read_bytes()
        assert device.run([f"{remote}/run"], 20).stdout_tail == "ran\n"
        many = len(far.received())
        assert device.push(folder) == str(remote) and len(far.received()) == many
        (folder / "run").write_text("#!/bin/sh\necho other\n")
        assert device.push(folder) != str(remote)


def test_stale_results_are_gone_before_a_job_is_pushed_again(far: Far, tmp_path: Path, model: Path) -> None:
    with far.device() as device:
        for path in (small(tmp_path), model):
            remote = Path(device.push(path))
            (remote.parent / "result.json").write_text("old")
            assert device.push(path) == str(remote) and not (remote.parent / "result.json").exists()


def test_a_broken_push_goes_on_where_it_stopped(far: Far, model: Path) -> None:
    far.set(cut=str(2 * MB))
    heard: list[int] = []
    device = far.device(grace_s=600)
    device.on_push = lambda name, sent, size: heard.append(sent)
    with device:
        remote = device.push(model)
        assert Path(remote).read_bytes() == model.read_bytes()
    assert max(far.received()) == MB  # 2 MB arrived before the cut, so only what was missing was sent again
    assert heard[-1] == 3 * MB and not far.root.exists()
    assert until(lambda: not far.processes("edgeslm"))


def test_a_folder_that_was_cut_goes_on_too(far: Far, tmp_path: Path) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    for name in "abc":
        (folder / name).write_bytes(os.urandom(MB + 100))
    far.set(cut=str(2 * MB))
    with far.device(grace_s=600) as device:
        remote = Path(device.push(folder))
        assert all((remote / name).read_bytes() == (folder / name).read_bytes() for name in "abc")
    assert max(far.received()) < 2 * MB


def test_a_push_whose_connection_stays_away_says_so_and_a_later_session_goes_on(far: Far, model: Path) -> None:
    far.set(cut=f"{2 * MB} 99")
    words = r"cut while model one.gguf was sent.*does not answer.*goes on from it"
    with far.device(grace_s=600) as device, pytest.raises(DeviceError, match=words):
        device.push(model)
    key = Payload(model).key
    assert until(lambda: not (far.root / "lock").is_symlink())
    assert sorted(far.left()) == ["last", f"part-{key}"]  # the part alone, until the grace is over
    assert (far.root / f"part-{key}").stat().st_size == 2 * MB
    far.set(down="0")
    with far.device() as device:
        assert Path(device.push(model)).read_bytes() == model.read_bytes()
    assert max(far.received()) == MB
    assert until(lambda: not far.root.exists() and not far.processes("edgeslm"))


def test_after_the_grace_the_device_clears_up_by_itself(far: Far, model: Path) -> None:
    far.set(cut=f"{2 * MB} 99")
    with far.device(grace_s=1) as device, pytest.raises(ConnectionLost):
        device.push(model)
    assert until(lambda: far.left() == ["last", f"part-{Payload(model).key}"])
    assert until(lambda: not far.root.exists())


def test_a_part_that_is_of_something_else_is_not_built_upon(far: Far, model: Path) -> None:
    far.root.mkdir()
    (far.root / f"part-{Payload(model).key}").write_bytes(b"x" * MB)
    with far.device() as device:
        assert Path(device.push(model)).read_bytes() == model.read_bytes()
    assert 3 * MB in far.received()


def test_what_arrives_damaged_is_sent_once_more_and_then_refused(far: Far, model: Path) -> None:
    far.program("sha256sum", "cat >/dev/null; echo 0000 -")
    with far.device() as device, pytest.raises(DeviceError, match="damaged twice"):
        device.push(model)
    assert far.received().count(3 * MB) == 2 and not far.root.exists()


def test_no_room_is_told_before_a_byte_is_sent(far: Far, model: Path) -> None:
    far.program("df", "echo Filesystem; echo '/dev/root 9999 9000 2048 99% /'")
    with far.device() as device:
        with pytest.raises(DeviceError, match=r"no room for model one.gguf: it needs 19.9 MB, 2.1 MB are free"):
            device.push(model)
        assert not [path for path in far.left() if path.startswith("part-")]
    assert not far.root.exists()


def test_a_device_that_becomes_full_meanwhile(far: Far, model: Path) -> None:
    far.program("cat", "head -c 1000; echo 'cat: write error: No space left on device' >&2; exit 1")
    with far.device() as device:
        with pytest.raises(DeviceError, match=r"became full while model one.gguf was sent"):
            device.push(model)
        assert not [path for path in far.left() if path.startswith("part-")]


def test_a_command_is_heard_and_its_end_told(far: Far) -> None:
    heard: list[str] = []
    with far.device() as device:
        done = device.run(["sh", "-c", "echo one; echo 'two $HOME'; echo why >&2; exit 4"], 20, heard.append)
        assert heard == ["one", "two $HOME"] and done.stdout_tail == "one\ntwo $HOME\n"
        assert (done.returncode, done.ok, done.signal, done.last_error_line) == (4, False, None, "why")
        echoed = device.run(["sh", "-c", 'printf "%s|" "$@"', "sh", "a b", "it's", '"', "$(id)", "*"], 20)
        assert echoed.stdout_tail == "a b|it's|\"|$(id)|*|"
        crash = device.run(["sh", "-c", "kill -SEGV $$"], 20)
        assert (crash.signal, crash.returncode, crash.oom) == (signal.SIGSEGV, -signal.SIGSEGV, False)
        killed = device.run(["sh", "-c", "echo loading >&2; kill -KILL $$"], 20)
        assert killed.signal == signal.SIGKILL and killed.oom and killed.last_error_line == "loading"


def test_stdin_stays_open_without_lines_and_closes_after_them(far: Far) -> None:
    with far.device() as device:
        assert device.run(["cat"], 0.7).timed_out
        done = device.run(["sh", "-c", "tr a-z A-Z"], 20, stdin=["one", "two"])
        assert done.ok and done.stdout_tail == "ONE\nTWO\n"


def test_a_hang_is_ended_there_with_its_children(far: Far) -> None:
    with far.device() as device:
        done = device.run(["sh", "-c", "sleep 61.7 & sleep 61.8"], 1.0)
        assert done.timed_out and not done.oom
        assert until(lambda: not far.processes("sleep\x0061."))


def test_a_listener_that_fails_leaves_no_process_there(far: Far) -> None:
    def fail(line: str) -> None:
        raise KeyboardInterrupt

    with far.device() as device:
        with pytest.raises(KeyboardInterrupt):
            device.run(["sh", "-c", "echo here; sleep 61.7"], 30, fail)
        assert until(lambda: not far.processes("sleep\x0061."))
        assert device.run(["true"], 20).ok


def test_a_cable_pulled_during_a_run(far: Far, tmp_path: Path, model: Path) -> None:
    with far.device() as device:
        device.push(model)
        job = device.push(small(tmp_path))

        def pull(line: str) -> None:
            far.set(epoch="1")

        with pytest.raises(ConnectionLost, match=r"connection to ssh:pi@far was cut while sh ran there"):
            device.run(["sh", "-c", "echo loaded; sleep 61.7"], 30, pull)  # takes no notice of its stdin
        assert until(lambda: not far.processes("sleep\x0061.") and not far.root.exists())
        assert device.push(tmp_path / "job.json") == job  # it is back: the next job opens a new session
        assert device.run(["true"], 20).ok
    assert not far.root.exists()


def test_two_sessions_at_once(far: Far) -> None:
    with far.device() as first:
        first.begin()
        with pytest.raises(DeviceError, match=rf"in use by another session \(process {os.getpid()} of this machine"):
            far.device().begin()
        assert first.run(["true"], 20).ok
    with far.device() as second:
        second.begin()


def test_a_lock_whose_holder_is_gone_is_taken_over_whatever_the_clock_says(far: Far) -> None:
    far.root.mkdir()
    (far.root / "session-0123456789abcdef").mkdir()
    (far.root / "lock").symlink_to("4194303.0123456789abcdef.aaaaaaaaaaaa.77.99999999999")  # since the year 5138
    with far.device() as device:
        device.begin()
        assert not (far.root / "session-0123456789abcdef").exists()
    assert not far.root.exists()


def test_a_live_session_of_another_machine_is_left_alone(far: Far) -> None:
    far.root.mkdir()
    token = "0123456789abcdef"
    holder = subprocess.Popen(["sh", "-c", f"# {token}\nread x; exit 0"], stdin=subprocess.PIPE)
    (far.root / "lock").symlink_to(f"{holder.pid}.{token}.aaaaaaaaaaaa.77.1700000000")
    try:
        with far.device() as device, pytest.raises(DeviceError, match=r"another machine since 2023-11-1"):
            device.begin()
    finally:
        holder.communicate(b"\n")
    assert (far.root / "lock").is_symlink()


HOLD = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from far import Far
far = Far.__new__(Far)
far.state = Path(sys.argv[2])
device = far.device()
device.push(Path(sys.argv[3]))
print("ready", flush=True)
device.run(["sh", "-c", "echo up; sleep 61.7"], 60, lambda line: print(line, flush=True))
"""


def test_a_program_that_is_killed_leaves_nothing_there(far: Far, model: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-c", HOLD, str(Path(__file__).parent), str(far.state), str(model)]
    (tmp_path / "tmp").mkdir()  # a program that is killed leaves its temporary files here, if not there
    env = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n" and other.stdout.readline() == "up\n"
        other.kill()
    assert until(lambda: not far.root.exists() and not far.processes("sleep\x0061."))


def test_a_session_whose_program_died_unnoticed_by_the_device_is_ended(far: Far) -> None:
    """A pulled cable: the device still waits for a program of this machine that is long gone."""
    first = far.device()
    first.begin()
    lock = os.readlink(far.root / "lock")
    gone = subprocess.Popen(["true"])
    gone.wait()
    (far.root / "lock").unlink()
    (far.root / "lock").symlink_to(lock.replace(f".{os.getpid()}.", f".{gone.pid}."))
    with far.device() as second:
        second.begin()
        assert second.run(["true"], 20).ok
        assert until(lambda: not first._session or not first._session.alive)
    first.close()
    assert not far.root.exists()


def elf(path: Path, machine: int) -> Path:
    path.write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + machine.to_bytes(2, "little") + bytes(44))
    path.chmod(0o755)
    return path


def test_a_program_for_another_processor(far: Far, tmp_path: Path) -> None:
    with far.device() as device:
        other = {"x86_64": 0xB7, "aarch64": 0x3E}[str(device.facts["machine"])]
        remote = device.push(elf(tmp_path / "worker", other))
        with pytest.raises(DeviceError, match=r"worker is built for (aarch64|x86_64), but ssh:pi@far is"):
            device.run([remote], 20)
        far.program("odd", "echo 'sh: 1: odd: Exec format error' >&2; exit 126")
        with pytest.raises(DeviceError, match="not a program for"):
            device.run(["odd"], 20)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "echo 'w: error while loading shared libraries: libgomp.so.1: cannot open shared object' >&2; exit 127",
            "needs the library libgomp.so.1",
        ),
        (
            'echo \'CANNOT LINK EXECUTABLE "w": library "libc++_shared.so" not found\' >&2; exit 1',
            r"libc\+\+_shared.so",
        ),
        ("echo 'sh: w: Permission denied' >&2; exit 126", "may not start w .*noexec"),
    ],
)
def test_what_keeps_a_program_from_starting(far: Far, script: str, words: str) -> None:
    far.program("w", script)
    with far.device() as device, pytest.raises(DeviceError, match=words):
        device.run(["w"], 20)


def test_a_program_that_is_not_there(far: Far) -> None:
    with far.device() as device, pytest.raises(DeviceError, match="cannot start no-such-program on ssh:pi@far"):
        device.run(["no-such-program"], 20)


def test_pull_brings_files_whole_or_says_why_not(far: Far, tmp_path: Path, model: Path) -> None:
    with far.device() as device:
        remote = device.push(model)
        device.pull(remote, tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == model.read_bytes()
        with pytest.raises(DeviceError, match="is not on the device"):
            device.pull(f"{remote}.nothing", tmp_path / "none")
        far.program("cat", "head -c 10")
        with pytest.raises(DeviceError, match="undamaged"):
            device.pull(remote, tmp_path / "none")
    assert sorted(path.name for path in tmp_path.glob("none*")) == []


def test_refusals_before_anything_is_sent(far: Far, tmp_path: Path) -> None:
    with far.device() as device, pytest.raises(DeviceError, match="does not exist"):
        device.push(tmp_path / "nothing")
    assert far.received() == []


def test_a_chatty_login_shell_is_told(far: Far, tmp_path: Path) -> None:
    link = far.ssh()
    noisy = type("Noisy", (), {})()
    noisy.name, noisy.root, noisy.also, noisy.why, noisy.close = link.name, link.root, "", link.why, link.close
    noisy.argv = lambda script, hold=False: link.argv(f"echo Welcome; {script}", hold)
    with pytest.raises(DeviceError, match=r"prints text of its own \('Welcome'\)"):
        RemoteDevice(noisy, grace_s=0).push(small(tmp_path))
    assert until(lambda: not far.root.exists())


def test_a_device_without_a_tool_that_is_needed(far: Far) -> None:
    for tool in ("sh", "mkdir", "grep", "tar", "df", "wc", "readlink"):
        (far.state / "bin" / tool).symlink_to(shutil.which(tool) or "")
    noisy = far.ssh()
    bare = type("Bare", (), {})()
    bare.name, bare.root, bare.also, bare.why, bare.close = noisy.name, noisy.root, "", noisy.why, noisy.close
    bare.argv = lambda script, hold=False: noisy.argv(f'PATH="${{PATH%%:*}}"; {script}', hold)
    with pytest.raises(DeviceError, match="lacks the program sha256sum"):
        RemoteDevice(bare).begin()


def test_a_recorder_runs_beside_a_worker(far: Far, tmp_path: Path) -> None:
    ended: list[str] = []
    with far.device() as device:
        device.begin()
        script = f"while [ ! -e {tmp_path}/done ]; do sleep 0.05; done; echo recorded"
        beside = threading.Thread(target=lambda: ended.append(device.run(["sh", "-c", script], 20).stdout_tail))
        beside.start()
        device.push(small(tmp_path))
        assert device.run(["sh", "-c", f"touch {tmp_path}/done; echo worked"], 20).stdout_tail == "worked\n"
        beside.join()
    assert ended == ["recorded\n"] and not far.root.exists()


def test_where_nothing_can_be_written(far: Far) -> None:
    (far.state / "home" / ".edgeslm-device").write_text("a file")
    with far.device() as device, pytest.raises(DeviceError, match="nothing can be written at"):
        device.begin()


def test_python_packages_are_put_there_from_outside(far: Far, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    about = '{"version": "3.11.2", "platform": "linux-aarch64", "libc": ["glibc", "2.36"], "there": ["numpy"]}'
    far.program("python3", f'[ "$1" = -c ] && {{ echo \'{about}\'; exit; }}; ls "$PYTHONPATH"')
    site = tmp_path / "site"
    (site / "onnxruntime").mkdir(parents=True)
    (site / "onnxruntime" / "__init__.py").write_text("")
    asked = []
    monkeypatch.setattr("edgeslm.devices.remote.site", lambda python, name: asked.append(python.missing) or site)
    with far.device() as device:
        assert device.hosts == ("native", "python") and device.facts["python"] == "3.11.2"
        assert device.run([device.python, "worker.py"], 20).stdout_tail == "onnxruntime\n"
    assert asked == [("onnxruntime", "onnxruntime_genai")] and not far.root.exists()
