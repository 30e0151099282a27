"""The toolkit as builds meet it: it compiles and links for a card that is not there."""

from __future__ import annotations

from typing import Any

import pytest

HOME = "/opt/dsprov/cuda/13.0.2"
# The runtime, half precision, cuBLAS, and a call of the driver itself, as llama.cpp has them.
PROGRAM = """
#include <cublas_v2.h>
#include <cuda.h>
#include <cuda_fp16.h>
__global__ void scale(half *a, half by) { a[threadIdx.x] = __hmul(a[threadIdx.x], by); }
int main() { cublasHandle_t h; scale<<<1, 32>>>(nullptr, half(2)); return cuInit(0) + cublasCreate(&h); }
"""


@pytest.fixture(autouse=True)
def root(host: Any) -> Any:
    """Look as root does."""
    with host.sudo():
        yield


@pytest.fixture
def program(host: Any) -> str:
    """A program for an RTX 4090."""
    path = "/root/scale"
    host.check_output("printf %%s %s > %s.cu", PROGRAM, path)
    done = host.run(
        f"{HOME}/bin/nvcc -arch=sm_89 -o {path} {path}.cu -L{HOME}/lib64/stubs -lcublas -lcuda "
        f"-Xlinker -rpath={HOME}/lib"
    )
    assert done.rc == 0, done.stderr
    return path


def test_it_compiles_and_links_for_one_card(host: Any, program: str) -> None:
    listed = host.check_output("cuobjdump --list-elf %s", program)
    assert "sm_89" in listed
    assert "sm_90" not in listed


def test_the_program_asks_for_the_real_driver(host: Any, program: str) -> None:
    """The stand-in is for linking alone: on a host without a driver the program says what it lacks."""
    needs = host.check_output("ldd %s", program)
    assert "libcuda.so.1 => not found" in needs
    assert f"{HOME}/lib/libcublas.so.13" in needs
    done = host.run(program)
    assert done.rc != 0
    assert "libcuda.so.1" in done.stderr
    # By the stand-in it starts, and hears that there is no driver (CUDA_ERROR_STUB_LIBRARY and cuBLAS's own).
    assert host.run(f"LD_LIBRARY_PATH={HOME}/lib64/stubs {program}").rc >= 34


def test_nothing_of_the_wheels_is_left(host: Any) -> None:
    assert not host.file("/var/lib/dsprov/build/cuda").exists
    assert host.check_output("find /opt/dsprov /var/lib/dsprov -name '*.part' -o -name '.*.dsprov-*'") == ""
