"""vLLM's build for GPUs on a host that imitates a card: all but what needs a real one.

A real one was met once (docs/coverage.md): vLLM then compiled a kernel before the first answer, and found
neither nvcc nor a C++ compiler.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.lab.artifacts.common import cache_root, pypi_file

pytestmark = pytest.mark.slow

PROJECT = os.environ.get("DSPROV_TEST_PROJECT", "tests") + "-cuda"
INVENTORY = ROOT / ".lab" / PROJECT / "hosts.ini"
DSPROV = str(Path(sys.executable).with_name("dsprov"))
UNIT = "dsprov-vllm.service"
WISHES = ("-e", "dsprov_model=tiny-llama", "-e", "dsprov_engine=vllm", "-e", "dsprov_web_ui=false")
# Says for which cards a library has code; nothing but this test needs it.
CUOBJDUMP = (
    "nvidia-cuda-cuobjdump",
    "nvidia_cuda_cuobjdump-13.2.78-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "394087411405b846bf43aa52ca2ff603bbe18b3b8a1257cda0903e23c17bdbf3",
)
# What vLLM's sampler asks of FlashInfer when it meets a Hopper card: the kernels, not yet loaded.
COMPILE = (
    "from flashinfer.sampling import gen_sampling_module as g;"
    "s = g(); s.build(verbose=False); print(s.get_library_path())"
)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def sh(*words: str) -> str:
    done = run("docker", "exec", f"dsprov-lab-{PROJECT}-gpu", *words)
    assert done.returncode == 0, f"{words}: {done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def refused() -> Iterator[subprocess.CompletedProcess[str]]:
    """An install that comes as far as a start: there is no driver behind the card."""
    lab = (sys.executable, "-m", "tests.lab")
    up = run(
        *lab, "up", "--fresh", "--project", PROJECT, "--host", "gpu=debian-12", "--artifacts", "tiny,cuda"
    )
    assert up.returncode == 0, up.stderr
    try:
        assert run(*lab, "hardware", "--project", PROJECT, "gpu", "1 x H20").returncode == 0
        yield run(DSPROV, "install", "--tier", "standard", "-i", str(INVENTORY), *WISHES)
    finally:
        run(*lab, "down", "--project", PROJECT)


def test_a_start_without_a_driver_is_named(refused: subprocess.CompletedProcess[str]) -> None:
    print(refused.stderr)
    assert refused.returncode == 1
    assert "dsprov-vllm.service starts and falls over" in refused.stderr
    assert "libcuda.so.1" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.fixture
def cuobjdump(tmp_path: Path) -> Path:
    with zipfile.ZipFile(pypi_file(cache_root(), *CUOBJDUMP, print)) as wheel:
        program = Path(wheel.extract("nvidia/cu13/bin/cuobjdump", tmp_path))
    program.chmod(0o755)
    return program


def test_kernels_are_compiled_for_the_card(
    refused: subprocess.CompletedProcess[str], cuobjdump: Path, tmp_path: Path
) -> None:
    """With the unit's own account and settings, and nothing else."""
    assert refused.returncode == 1
    said = shlex.split(sh("systemctl", "show", UNIT, "--property=Environment", "--value"))
    words = ("runuser", "-u", "dsprov-vllm", "--", "env", "-i", *said, "FLASHINFER_CUDA_ARCH_LIST=9.0a")
    library = sh(*words, "/opt/dsprov/vllm/current/bin/python", "-c", COMPILE).splitlines()[-1]
    assert library.startswith("/var/lib/dsprov/vllm/")
    assert run("docker", "cp", f"dsprov-lab-{PROJECT}-gpu:{library}", str(tmp_path / "it.so")).returncode == 0
    listed = run(str(cuobjdump), "--list-elf", str(tmp_path / "it.so")).stdout.splitlines()
    assert listed
    assert all(".sm_90a." in line for line in listed), listed
