"""Where workers run. `DEVICES[kind](**options)` makes a device."""

from edgeslm.devices.adb import AdbDevice
from edgeslm.devices.fake import FakeDevice
from edgeslm.devices.local import LocalDevice
from edgeslm.devices.ssh import SshDevice

DEVICES = {"local": LocalDevice, "fake": FakeDevice, "ssh": SshDevice, "adb": AdbDevice}
