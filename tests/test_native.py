"""The native build's cache: keyed by what the wheel depends on, checked by hash."""

from __future__ import annotations

from pathlib import Path

from edgeslm.runtimes import native

CPUINFO = "processor\t: {i}\nmodel name\t: Some CPU\nflags\t\t: {flags}\ncpu MHz\t\t: {mhz}\n"


def cpuinfo(tmp_path: Path, flags: str, mhz: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("".join(CPUINFO.format(i=i, flags=flags, mhz=mhz) for i in range(2)), encoding="utf-8")
    return path


def test_key_changes_with_instruction_sets_and_not_with_clock(tmp_path):
    one = native.cpu_key(cpuinfo(tmp_path, "avx2 fma", "2100.1"))
    assert one == native.cpu_key(cpuinfo(tmp_path, "avx2 fma", "3000.0"))
    assert one != native.cpu_key(cpuinfo(tmp_path, "avx2 fma amx_int8", "2100.1"))
    assert native.cpu_key(tmp_path / "missing")


def test_wheel_is_used_only_when_its_hash_holds(tmp_path):
    wheel = tmp_path / "llama_cpp_python-0-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    assert native.sound_wheel(tmp_path) is None
    wheel.with_suffix(".whl.sha256").write_text(native._sha256(wheel), encoding="ascii")
    assert native.sound_wheel(tmp_path) == wheel
    wheel.write_bytes(b"other")
    assert native.sound_wheel(tmp_path) is None


def test_hook_switches_amx_off_and_common_off():
    text = native.HOOK.read_text(encoding="utf-8")
    assert "-U__AMX_INT8__" in text and "LLAMA_BUILD_COMMON OFF" in text
