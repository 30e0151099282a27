# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""What NVIDIA's driver says of its cards, through pynvml where the host has it, else by ctypes alone.

Signatures: NVIDIA's NVML API reference. Nothing is installed and nothing is set.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

LIBRARY = "libnvidia-ml.so.1"
# NVML's codes that mean more here than "it failed".
LIBRARY_NOT_FOUND = 12
MOST_LINKS = 36
# A card that fell off the bus can hold NVML for ever.
PATIENCE = 20.0

T = TypeVar("T")


class NvmlError(Exception):
    """A call that NVML refused; `value` is its code, as in pynvml."""

    def __init__(self, value: int, text: str = "") -> None:
        super().__init__(text or f"NVML error {value}")
        self.value = value


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Pci(ctypes.Structure):
    _fields_ = (
        ("busIdLegacy", ctypes.c_char * 16),
        ("domain", ctypes.c_uint),
        ("bus", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("pciDeviceId", ctypes.c_uint),
        ("pciSubSystemId", ctypes.c_uint),
        ("busId", ctypes.c_char * 32),
    )


class Library:
    """The few functions of pynvml that a reading needs, under its names."""

    NVMLError = NvmlError

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(LIBRARY)
        except OSError as problem:
            raise NvmlError(LIBRARY_NOT_FOUND, str(problem)) from None

    def _call(self, name: str, *arguments: Any) -> None:
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise NvmlError(13, f"this driver has no {name}") from None
        code = int(function(*arguments))
        if code:
            raise NvmlError(code)

    def nvmlErrorString(self, code: int) -> str:
        function = self._library.nvmlErrorString
        function.restype = ctypes.c_char_p
        return bytes(function(code) or b"").decode(errors="replace")

    def _text(self, name: str, *first: Any) -> str:
        buffer = ctypes.create_string_buffer(96)
        self._call(name, *first, buffer, ctypes.c_uint(len(buffer)))
        return buffer.value.decode(errors="replace")

    def nvmlInit(self) -> None:
        self._call("nvmlInit_v2")

    def nvmlShutdown(self) -> None:
        self._call("nvmlShutdown")

    def nvmlSystemGetDriverVersion(self) -> str:
        return self._text("nvmlSystemGetDriverVersion")

    def nvmlSystemGetNVMLVersion(self) -> str:
        return self._text("nvmlSystemGetNVMLVersion")

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        version = ctypes.c_int()
        self._call("nvmlSystemGetCudaDriverVersion", ctypes.byref(version))
        return version.value

    def nvmlDeviceGetCount(self) -> int:
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        return count.value

    def nvmlDeviceGetHandleByIndex(self, index: int) -> ctypes.c_void_p:
        handle = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(handle))
        return handle

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p) -> str:
        return self._text("nvmlDeviceGetName", handle)

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p) -> _Memory:
        memory = _Memory()
        self._call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        return memory

    def nvmlDeviceGetCudaComputeCapability(self, handle: ctypes.c_void_p) -> tuple[int, int]:
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvmlDeviceGetCudaComputeCapability", handle, ctypes.byref(major), ctypes.byref(minor))
        return major.value, minor.value

    def nvmlDeviceGetPciInfo(self, handle: ctypes.c_void_p) -> _Pci:
        info = _Pci()
        self._call("nvmlDeviceGetPciInfo_v3", handle, ctypes.byref(info))
        return info

    def nvmlDeviceGetNvLinkState(self, handle: ctypes.c_void_p, link: int) -> int:
        active = ctypes.c_uint()
        self._call("nvmlDeviceGetNvLinkState", handle, ctypes.c_uint(link), ctypes.byref(active))
        return active.value


@dataclass(frozen=True)
class Device:
    """One card that the driver answers for.

    Attributes:
        address: PCI domain, bus and device; None where the driver does not say.
        pci_id: vendor and device, such as "10de:2684".
        compute_capability: such as "8.9"; None with a driver too old to say.
        nvlinks: active NVLinks; None where the card has none.
    """

    name: str
    address: tuple[int, int, int] | None = None
    pci_id: str | None = None
    memory_bytes: int | None = None
    compute_capability: str | None = None
    nvlinks: int | None = None


@dataclass(frozen=True)
class Reading:
    """What NVML said.

    Attributes:
        driver_version: the loaded driver's, such as "580.95.05"; None where none answers.
        library_version: of the library, which a mismatch names beside the driver's.
        cuda_version: the newest CUDA that the driver serves, such as "13.0".
        error: why there are no devices although a driver is installed: code and NVML's words.
    """

    driver_version: str | None = None
    library_version: str | None = None
    cuda_version: str | None = None
    error: str | None = None
    devices: tuple[Device, ...] = field(default=())


def backend() -> Any:
    """The host's own pynvml, else the same few functions by ctypes; raises NvmlError without a library."""
    try:
        pynvml = importlib.import_module("pynvml")
    except Exception:  # whatever somebody's package does while it is imported
        return Library()
    return pynvml if hasattr(pynvml, "nvmlInit") and hasattr(pynvml, "NVMLError") else Library()


def read(api: Any) -> Reading:
    """Everything, from pynvml or `Library`; what a driver is too old for is left out."""

    def ask(question: Callable[..., T], *about: Any) -> T | None:
        try:
            return question(*about)
        except api.NVMLError:
            return None

    try:
        api.nvmlInit()
    except api.NVMLError as problem:
        if problem.value == LIBRARY_NOT_FOUND:
            return Reading()
        return Reading(library_version=_text(ask(api.nvmlSystemGetNVMLVersion)), error=_why(api, problem))
    try:
        cuda = ask(api.nvmlSystemGetCudaDriverVersion)
        reading = {
            "driver_version": _text(ask(api.nvmlSystemGetDriverVersion)),
            "library_version": _text(ask(api.nvmlSystemGetNVMLVersion)),
            "cuda_version": f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else None,
        }
        devices, error = [], None
        for index in range(ask(api.nvmlDeviceGetCount) or 0):
            try:
                devices.append(_device(api, api.nvmlDeviceGetHandleByIndex(index), ask))
            except api.NVMLError as problem:  # one card is lost, the others still answer
                error = f"card {index}: {_why(api, problem)}"
        return Reading(**reading, error=error, devices=tuple(devices))
    finally:
        ask(api.nvmlShutdown)


def _why(api: Any, problem: Any) -> str:
    """NVML's own words and code: those of pynvml and of other versions differ."""
    return f"{_text(api.nvmlErrorString(problem.value))} ({problem.value})"


def _device(api: Any, handle: Any, ask: Callable[..., Any]) -> Device:
    capability = ask(api.nvmlDeviceGetCudaComputeCapability, handle)
    memory = ask(api.nvmlDeviceGetMemoryInfo, handle)
    pci = ask(api.nvmlDeviceGetPciInfo, handle)
    links: int | None = None
    for link in range(MOST_LINKS):
        active = ask(api.nvmlDeviceGetNvLinkState, handle, link)
        if active is None:
            break
        links = (links or 0) + int(active)
    return Device(
        name=_text(api.nvmlDeviceGetName(handle)) or "",
        address=(int(pci.domain), int(pci.bus), int(pci.device)) if pci else None,
        pci_id=f"{pci.pciDeviceId & 0xFFFF:04x}:{pci.pciDeviceId >> 16:04x}" if pci else None,
        memory_bytes=int(memory.total) if memory else None,
        compute_capability=f"{capability[0]}.{capability[1]}" if capability else None,
        nvlinks=links,
    )


def _text(value: Any) -> str | None:
    """Old pynvml answers in bytes."""
    if value is None:
        return None
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_apart(patience: float = PATIENCE) -> Reading:
    """The reading, made in a process of its own: a library that crashes or hangs takes nobody with it."""
    out, into = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        _answer(into)
    os.close(into)
    said = b""
    until = time.monotonic() + patience
    ended = False
    while not ended and select.select([out], [], [], max(0.0, until - time.monotonic()))[0]:
        piece = os.read(out, 65536)
        said += piece
        ended = not piece
    os.close(out)
    if not ended:
        # One that the kernel holds cannot be waited for, so it is left to end when it can.
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, os.WNOHANG)
        return Reading(
            error=f"NVML gave no answer in {patience:g} s; see the kernel's log (dmesg) for Xid lines"
        )
    status = os.waitpid(child, 0)[1]
    try:
        row = json.loads(said)
    except ValueError:
        return Reading(error=f"{LIBRARY} ended the process that asked it ({status})")
    devices = tuple(
        Device(**{**one, "address": tuple(one["address"]) if one["address"] else None})
        for one in row.pop("devices")
    )
    return Reading(**row, devices=devices)


def _answer(into: int) -> None:
    """The child's life: ask, write the answer, end without running what the parent left to be run."""
    try:
        # An orphan that hangs must not hold ssh's streams open.
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nowhere, stream)
        try:
            reading = read(backend())
        except NvmlError as problem:
            absent = problem.value == LIBRARY_NOT_FOUND
            reading = Reading(error=None if absent else f"{problem} ({problem.value})")
        except Exception as problem:
            reading = Reading(error=f"{type(problem).__name__}: {problem}")
        os.write(into, json.dumps(asdict(reading)).encode())
    finally:
        os._exit(0)
