"""Energy sensors: name -> a function that looks for it in a device's tree, (sensors, why there is none)."""

from edgeslm.meters.sensors import amd, android_battery, apple, external_csv, nvml, pi5_pmic, pixel_rails, rapl

SENSORS = {
    "rapl": rapl.look,
    "pi5_pmic": pi5_pmic.look,
    "android_battery": android_battery.look,
    "pixel_rails": pixel_rails.look,
    "nvml": nvml.look,
    "amd": amd.look,
    "apple": apple.look,
    "external_csv": external_csv.look,
}
