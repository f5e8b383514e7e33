"""From what a user writes after `--on` to a device: `local`, `ssh:[user@]host[:port]`, `adb:SERIAL`, `browser`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from edgeslm.devices.adb import AdbDevice, listed
from edgeslm.devices.base import Device
from edgeslm.devices.listing import Entry, entry
from edgeslm.devices.local import LocalDevice
from edgeslm.devices.pushing import OnPush
from edgeslm.devices.remote import RemoteDevice
from edgeslm.devices.ssh import SshDevice
from edgeslm.errors import DeviceError

KINDS = "local, ssh:[user@]host[:port], adb:SERIAL, browser"


@contextmanager
def opened(spec: str, keep: bool = False, on_push: OnPush | None = None) -> Iterator[Device]:
    """The device, reached and taken; closed afterwards, with nothing left on it. `keep`: models stay there for the next
    time. Raises DeviceError."""
    with looked_at(spec, keep, on_push) as device:
        if isinstance(device, RemoteDevice):
            device.begin()
        yield device


@contextmanager
def looked_at(spec: str, keep: bool = False, on_push: OnPush | None = None) -> Iterator[Device]:
    """The device without taking it: its facts can be asked, even while another session uses it. Raises DeviceError."""
    kind, _, rest = spec.partition(":")
    if spec == "local":
        yield LocalDevice()
    elif spec == "browser":
        from edgeslm.devices.browser import BrowserDevice

        with BrowserDevice() as browser:
            yield browser
    elif kind == "ssh" and rest:
        with SshDevice(rest, keep, on_push) as remote:
            yield remote
    elif kind == "adb":
        with AdbDevice(rest or only_phone(), keep, on_push) as remote:
            yield remote
    else:
        raise DeviceError(f"'{spec}' names no device; write one of {KINDS}")


def only_phone() -> str:
    """The serial of the one phone that is connected. Raises DeviceError when there is none or a choice."""
    found = sorted(listed())
    if len(found) == 1:
        return found[0]
    if not found:
        raise DeviceError("no phone is connected; switch USB debugging on and see `adb devices`")
    raise DeviceError(f"several phones are connected; say which: {', '.join(f'adb:{serial}' for serial in found)}")


def in_reach(named: Iterable[str] = ()) -> list[str]:
    """What can be found without being told, then what was named: this machine, phones, a browser. Machines behind ssh
    have to be named; nobody's network is searched."""
    found = ["local"]
    if shutil.which("adb"):
        found += [f"adb:{serial}" for serial in sorted(listed())]
    try:
        from edgeslm.devices.browser import BrowserDevice

        with BrowserDevice():
            found.append("browser")
    except DeviceError:
        pass
    return list(dict.fromkeys([*found, *named]))


def entries(specs: Iterable[str]) -> Iterator[Entry]:
    """What each device is and can measure, or why it cannot be reached. Nothing is taken, nothing left behind."""
    for spec in specs:
        try:
            with looked_at(spec) as device:
                found = entry(spec, device.facts, device.root, device.hosts)
        except DeviceError as error:
            found = Entry(spec, why_not=str(error))
        yield found
