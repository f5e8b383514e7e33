"""Where workers run. `DEVICES[kind](**options)` makes a device."""

from edgeslm.devices.fake import FakeDevice
from edgeslm.devices.local import LocalDevice

DEVICES = {"local": LocalDevice, "fake": FakeDevice}
