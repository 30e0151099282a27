"""The CUDA build: code for one card, and for no other."""

from __future__ import annotations

from typing import Any

import pytest

TOOLKIT = "/opt/dsprov/cuda/13.0.2"


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


@pytest.fixture
def build(host: Any) -> str:
    """The folder of the programs."""
    (found,) = host.check_output("ls -d /opt/dsprov/llama_cpp/b11434-*").split()
    return f"{found}/bin"


def test_it_has_code_for_the_card_and_for_no_other(host: Any, build: str) -> None:
    listed = host.check_output("cuobjdump --list-elf %s/libggml-cuda.so", build).splitlines()
    assert len(listed) > 50
    assert all("sm_89" in line for line in listed)


def test_it_finds_its_libraries_and_asks_for_the_real_driver(host: Any, build: str) -> None:
    needs = host.check_output("ldd %s/libggml-cuda.so", build)
    assert f"{TOOLKIT}/lib/libcublas.so.13" in needs
    assert f"{TOOLKIT}/lib/libcudart.so.13" in needs
    assert "libcuda.so.1 => not found" in needs


def test_the_server_starts_by_the_stand_in(host: Any, build: str) -> None:
    done = host.run("LD_LIBRARY_PATH=%s/lib64/stubs %s/llama-server --version", TOOLKIT, build)
    assert done.rc == 0, done.stderr
    assert "build 11434" in done.stdout + done.stderr
