"""ssh: the user's own configuration decides; a real server where one is installed; each refusal as one sentence."""

from __future__ import annotations

import contextlib
import getpass
import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from far import Far, until

from edgeslm.devices.links import ConnectionLost
from edgeslm.devices.open import opened
from edgeslm.devices.payload import Payload
from edgeslm.devices.remote import RemoteDevice
from edgeslm.devices.ssh import SshDevice, SshLink
from edgeslm.errors import DeviceError

MB = 1 << 20
SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/libexec")
real = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="no ssh server is installed here")


@pytest.mark.parametrize(
    ("target", "login", "port"),
    [
        ("pi", "pi", ""),
        ("pi@raspberrypi.local", "pi@raspberrypi.local", ""),
        ("pi@10.0.0.7:2222", "pi@10.0.0.7", "2222"),
        ("pi@[fe80::1%eth0]:22", "pi@fe80::1%eth0", "22"),
    ],
)
def test_targets(target: str, login: str, port: str) -> None:
    link = SshLink(target)
    argv = link.argv("true")
    assert argv[-3:-1] == ["--", login] and link.name == f"ssh:{target}"
    assert (argv[argv.index("-p") + 1] if "-p" in argv else "") == port


@pytest.mark.parametrize("target", ["", "-oProxyCommand=id", "pi@-x", "a b", "pi@host:port", "pi@host:22:3", "[::1"])
def test_what_is_no_target(target: str) -> None:
    with pytest.raises(DeviceError, match=r"names no machine; write ssh:\[user@\]host\[:port\]"):
        SshLink(target)


def test_the_users_own_choices_are_untouched() -> None:
    words = " ".join(SshLink("pi@far").argv("true"))
    assert "BatchMode=yes" in words and "ControlPersist=no" in words  # never hangs at a question, never lingers
    for option in (
        "StrictHostKeyChecking",
        "UserKnownHostsFile",
        "IdentityFile",
        "ProxyJump",
        "-F",
        "-i ",
        "-p ",
        "-l ",
    ):
        assert option not in words


def test_later_commands_go_through_the_sessions_connection() -> None:
    link = SshLink("pi@far")
    assert "ControlPath=none" in link.argv("true") and "ControlMaster=no" in link.argv("true")
    first = link.argv("true", hold=True)
    path = next(word for word in first if word.startswith("ControlPath="))
    assert "ControlMaster=yes" in first and path in link.argv("true")
    folder = Path(path.removeprefix("ControlPath=")).parent
    assert folder.is_dir() and folder.stat().st_mode & 0o077 == 0 and len(path) < 100
    link.close()
    assert not folder.exists()


# what OpenSSH 9 prints, and a piece of the sentence that is made of it
@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\r\nHost key verification failed.", "another host key"),
        ("Host key verification failed.", "not known yet; connect once by hand (`ssh -p 2222 pi@far`)"),
        ("pi@far: Permission denied (publickey,password).", "refuses the log-in"),
        ("ssh: Could not resolve hostname far: Name or service not known", "no machine called far can be found"),
        ("ssh: connect to host far port 2222: Connection refused", "no ssh server answers"),
        ("ssh: connect to host far port 2222: Connection timed out", "does not answer; see that it is on, awake"),
        ("ssh: connect to host far port 2222: No route to host", "does not answer; see that it is on, awake"),
        ("/home/u/.ssh/config: line 1: Bad configuration option: x", "refuses the user's configuration"),
        ("kex_exchange_identification: read: Connection reset by peer", "closed the connection before it was made"),
        ("client_loop: send disconnect: Broken pipe", ""),
    ],
)
def test_what_ssh_says_becomes_a_sentence(said: str, sentence: str) -> None:
    why = SshLink("pi@far:2222").why(255, said)
    assert sentence in why and bool(why) == bool(sentence) and "\n" not in why


def test_a_device_that_is_asleep(tmp_path: Path) -> None:
    far = Far(tmp_path)
    far.set(down="9")
    with far.device() as device, pytest.raises(ConnectionLost, match="does not answer; see that it is on, awake"):
        device.begin()
    far.set(down="0", refused="")


@dataclass
class Server:
    """A real sshd of this user's; `home` is where devices put things."""

    port: int
    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def root(self) -> Path:
        return self.folder / "device"

    def link(self, **options: object) -> SshLink:
        given = {"UserKnownHostsFile": self.folder / "known", "IdentityFile": self.folder / "id"} | options
        words = [f"{key}={value}" for key, value in {**given, "IdentitiesOnly": "yes"}.items()]
        flags = tuple(part for word in words for part in ("-o", word))
        return SshLink(f"{getpass.getuser()}@127.0.0.1:{self.port}", options=flags, root=shlex.quote(str(self.root)))

    def device(self, grace_s: int = 0) -> RemoteDevice:
        device = SshDevice("", grace_s=grace_s, link=self.link())
        device.pauses = (0.0, 0.2)
        return device

    def logged_in(self) -> int:
        return (self.folder / "log").read_text().count("Accepted publickey")

    def cut(self) -> None:
        """The server's processes for its connections die; what runs in them does not."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                name, _, rest = stat.read_text().partition("(")[2].rpartition(")")
                if name.startswith("sshd") and int(rest.split()[1]) == self.process.pid:
                    os.kill(int(stat.parent.name), signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host", "id", "other"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "id.pub",
        "StrictModes": "no",
        "UsePAM": "no",
        "PidFile": "none",
        "PasswordAuthentication": "no",
    }
    (folder / "config").write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(folder / "config")], stderr=log)
    assert until(lambda: b"Server listening" in (folder / "log").read_bytes())
    yield Server(port, folder, process)
    process.terminate()
    process.wait()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(os.urandom(6 * MB))
    return path


@real
def test_a_real_server_from_begin_to_end(server: Server, model: Path) -> None:
    before = server.logged_in()
    with server.device() as device:
        device.begin()
        assert device.facts["kernel"] and "native" in device.hosts
        after_look = server.logged_in()
        remote = device.push(model)
        assert device.push(model) == remote
        device.pull(remote, model.with_name("back"))
        assert model.with_name("back").read_bytes() == model.read_bytes()
        done = device.run(["sh", "-c", "cat; echo why >&2; kill -9 $$"], 20, stdin=["it's", "$HOME"])
        assert done.oom and done.stdout_tail == "it's\n$HOME\n" and done.last_error_line == "why"
        assert device.run(["sleep", "61.7"], 0.5).timed_out
        assert server.logged_in() == after_look <= before + 2  # one for the look, one for all the rest
    assert not server.root.exists()


@real
def test_a_real_connection_cut_during_a_push(server: Server, model: Path) -> None:
    sent: list[int] = []
    before = server.logged_in()

    def hear(name: str, now: int, size: int) -> None:
        if now >= 3 * MB and not any(n >= 3 * MB for n in sent):
            server.cut()
        sent.append(now)

    with server.device(grace_s=60) as device:
        device.on_push = hear
        assert Path(device.push(model)).read_bytes() == model.read_bytes()
    # 6 MB in chunks of a quarter: it went on from what had arrived, over a connection of its own
    assert len(sent) < 24 + 12 and server.logged_in() - before >= 2
    assert not server.root.exists()


@real
def test_a_real_connection_cut_during_a_run(server: Server, model: Path, tmp_path: Path) -> None:
    with server.device() as device:
        device.push(model)
        script = f"echo $$ > {tmp_path / 'pid'}; echo up; sleep 61.7"
        with pytest.raises(ConnectionLost, match="was cut while sh ran there, which ends it"):
            device.run(["sh", "-c", script], 30, lambda line: server.cut())
        pid = (tmp_path / "pid").read_text().strip()
        assert until(lambda: not server.root.exists() and not Path(f"/proc/{pid}").exists())
        assert device.run(["true"], 20).ok
    assert not server.root.exists()


@real
def test_wrong_and_unknown_host_keys_and_a_refused_key(server: Server, tmp_path: Path) -> None:
    wrong = tmp_path / "known"
    wrong.write_text(f"[127.0.0.1]:{server.port} {(server.folder / 'other.pub').read_text()}")
    for link, words in (
        (server.link(UserKnownHostsFile=wrong), "shows another host key than the one known for it"),
        (server.link(UserKnownHostsFile=tmp_path / "none"), "is not known yet; connect once by hand"),
        (server.link(IdentityFile=server.folder / "other"), "refuses the log-in"),
    ):
        with pytest.raises(DeviceError, match=words):
            RemoteDevice(link).begin()
    assert not (tmp_path / "none").exists()  # nothing was accepted in the user's name


@real
def test_an_alias_and_a_jump_host_of_the_users_configuration(server: Server, tmp_path: Path) -> None:
    config = tmp_path / "config"
    common = f"Port {server.port}\nUser {getpass.getuser()}\nIdentityFile {server.folder / 'id'}\nIdentitiesOnly yes\n"
    known = f"UserKnownHostsFile {server.folder / 'known'}\nHostName 127.0.0.1\n"
    config.write_text(f"Host gate\n{common}{known}\nHost behind\nProxyJump gate\n{common}{known}")
    link = SshLink("behind", options=("-F", str(config)), root=shlex.quote(str(server.root)))
    before = server.logged_in()
    with RemoteDevice(link, grace_s=0) as device:
        assert device.run(["echo", "through"], 30).stdout_tail == "through\n"
    assert server.logged_in() - before == 2 * 2  # the gate and the machine behind it: for the look, for the session
    assert not server.root.exists()


@real
def test_nothing_listens_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        spec = f"ssh:127.0.0.1:{free.getsockname()[1]}"
        start = time.monotonic()
        with pytest.raises(DeviceError, match="no ssh server answers"), opened(spec):
            pass
        assert time.monotonic() - start < 20


def test_opened_takes_the_device_and_lets_it_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    far = Far(tmp_path)
    monkeypatch.setenv("PATH", f"{far.state}:{os.environ['PATH']}")
    with opened("ssh:pi@far", keep=True) as device:
        remote = device.push(model)
        with pytest.raises(DeviceError, match="in use by another session"), opened("ssh:pi@far"):
            pass
    assert Path(remote).parent.name == Payload(model).key and Path(remote).exists()
    with opened("ssh:pi@far"):
        pass
    assert not far.root.exists()
