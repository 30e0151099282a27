#!/usr/bin/python
# Copyright: (c) 2026, The dsprov authors
# Apache License 2.0 (see LICENSE or https://www.apache.org/licenses/LICENSE-2.0)
"""Ansible module: a CUDA toolkit made of NVIDIA's wheels."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_wheels
short_description: Make a CUDA toolkit of NVIDIA's wheels
version_added: 0.1.0
description:
  - Unpacks wheels that are on the host into one folder, and adds what compilers and linkers look for and
    wheels leave out, which are C(lib64), links without version, and a stand-in for the driver's library.
  - The folder appears as a whole, after a small program was compiled and linked with it.
options:
  name:
    description: What the toolkit is called in messages.
    type: str
    required: true
  wheels:
    description: Paths of the wheels; they are needed only while the toolkit is not there.
    type: list
    elements: path
    required: true
  digests:
    description: Their sha256, by which a toolkit that is there is known.
    type: list
    elements: str
    required: true
  dest:
    description: The folder that they become.
    type: path
    required: true
  capability:
    description: Compute capability that the small program is compiled for.
    type: str
    default: "7.5"
attributes:
  check_mode:
    description: Says whether it would be made.
    support: full
author:
  - The dsprov authors
"""

EXAMPLES = r"""
- name: Ensure the toolkit is unpacked and compiles
  dsprov.appliance.cuda_wheels:
    name: CUDA 13.0.2
    wheels: [/var/lib/dsprov/build/cuda/nvidia_cuda_nvcc-13.0.88-py3-none-manylinux_2_17_x86_64.whl]
    digests: ["{{ nvcc_sha256 }}"]
    dest: /opt/dsprov/cuda/13.0.2
"""

RETURN = r"""
path:
  description: The folder.
  returned: always
  type: str
present:
  description: Whether it was there before.
  returned: success
  type: bool
"""

import os
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.dsprov.appliance.plugins.module_utils import builds, files

# Wheels put everything below a folder of their release: nvidia/cu13/bin/nvcc.
INSIDE = re.compile(r"nvidia/cu\d+/(.+)")
PROGRAMS = re.compile(r"(bin|nvvm/bin)/[^/]+$")
# Uses the runtime, cuBLAS and the driver's library, as llama.cpp does.
TRIAL = """
#include <cublas_v2.h>
#include <cuda.h>
__global__ void add(float *a) { a[threadIdx.x] += 1.0f; }
int main() {
  cublasHandle_t handle;
  float *memory;
  if (cuInit(0) || cudaMalloc(&memory, 128) || cublasCreate(&handle)) return 1;
  add<<<1, 32>>>(memory);
  return cudaDeviceSynchronize();
}
"""
# As NVIDIA's own stand-in: every call says that no driver is there (CUDA_ERROR_STUB_LIBRARY).
STUB_ERROR = 34


class CudaWheels:
    """One toolkit."""

    def __init__(self, params: dict[str, Any]) -> None:
        self.params = params
        self.dest: str = params["dest"]
        self.digest = builds.digest_of({"wheels": sorted(params["digests"]), "layout": 1})

    def present(self) -> bool:
        """Whether it is there, with every file as it was made."""
        stamp = files.load_json(os.path.join(self.dest, builds.STAMP))
        if stamp.get("digest") != self.digest:
            return False
        there = files.list_tree(self.dest, builds.STAMP)
        return all(there.get(path) == entry for path, entry in stamp["files"].items())

    def make(self) -> None:
        """Unpack, complete, try, and put in place."""
        folder, base = os.path.split(self.dest)
        new = Path(folder, f".{base}.dsprov-new")
        shutil.rmtree(new, ignore_errors=True)
        files.make_parents(str(new / "x"))
        try:
            self._unpack(new)
            self._complete(new)
            self._stub(new)
            self._try(new)
            stamp = {
                "digest": self.digest,
                "name": self.params["name"],
                "files": files.list_tree(str(new), builds.STAMP),
            }
            files.dump_json(str(new / builds.STAMP), stamp)
            files.sync_tree(str(new))
            files.replace_tree(str(new), self.dest)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise

    def _unpack(self, new: Path) -> None:
        for wheel in self.params["wheels"]:
            with zipfile.ZipFile(wheel) as package:
                rows = [(row, INSIDE.fullmatch(row.filename)) for row in package.infolist()]
                size = sum(row.file_size for row, inside in rows if inside)
                files.need_space(str(new / "x"), size, f"unpacking {os.path.basename(wheel)}")
                for row, inside in rows:
                    if not inside or row.is_dir() or ".." in inside[1].split("/"):
                        continue
                    path = new / inside[1]
                    files.make_parents(str(path))
                    with package.open(row) as source, path.open("wb") as target:
                        shutil.copyfileobj(source, target, files.CHUNK)
                    path.chmod(0o755 if PROGRAMS.fullmatch(inside[1]) else 0o644)

    def _complete(self, new: Path) -> None:
        if not (new / "bin" / "nvcc").exists():
            raise files.FileError(
                f"{self.params['name']}: no wheel holds bin/nvcc; correct the catalogue row"
            )
        (new / "lib64").symlink_to("lib")
        for library in sorted((new / "lib").glob("lib*.so.*")):
            link = library.with_name(library.name.partition(".so")[0] + ".so")
            if not link.exists():
                link.symlink_to(library.name)

    def _stub(self, new: Path) -> None:
        """A library with the driver's name and calls, to link with where no driver is installed."""
        header = run(["gcc", "-E", "-x", "c", f"-I{new}/include", "-"], "#include <cuda.h>\n")
        names = sorted(set(re.findall(r"\b(cu[A-Z]\w*)\s*\(", header)))
        stubs = new / "lib" / "stubs"
        stubs.mkdir()
        text = "".join(f"int {name}(void) {{ return {STUB_ERROR}; }}\n" for name in names)
        library = stubs / "libcuda.so.1"
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O0",
            "-Wl,-soname,libcuda.so.1",
            "-x",
            "c",
            "-o",
            str(library),
            "-",
        ]
        run(command, text)
        (stubs / "libcuda.so").symlink_to(library.name)

    def _try(self, new: Path) -> None:
        number = self.params["capability"].replace(".", "")
        trial = new / "trial.cu"
        trial.write_text(TRIAL, encoding="ascii")
        command = [str(new / "bin" / "nvcc"), f"-arch=sm_{number}", "-o", str(new / "trial"), str(trial)]
        run([*command, f"-L{new}/lib/stubs", "-lcublas", "-lcuda"])
        (new / "trial").unlink()
        trial.unlink()


def run(command: list[str], text: str = "") -> str:
    """Standard output of a command.

    Raises:
        FileError: it failed; names the first error.
    """
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"}
    )
    if done.returncode:
        _kind, words = builds.first_error(done.stderr + done.stdout)
        raise files.FileError(f"{os.path.basename(command[0])} ended with {done.returncode}: {words}")
    return done.stdout


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "wheels": {"type": "list", "elements": "path", "required": True},
            "digests": {"type": "list", "elements": "str", "required": True},
            "dest": {"type": "path", "required": True},
            "capability": {"type": "str", "default": "7.5"},
        },
        supports_check_mode=True,
    )
    toolkit = CudaWheels(module.params)
    present = toolkit.present()
    try:
        if not present and not module.check_mode:
            toolkit.make()
    except (files.FileError, OSError, zipfile.BadZipFile) as error:
        module.fail_json(msg=f"{module.params['name']}: {error}", path=toolkit.dest)
    module.exit_json(changed=not present, path=toolkit.dest, present=present)


if __name__ == "__main__":
    main()
