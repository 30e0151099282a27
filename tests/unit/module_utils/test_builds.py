"""What a build from source depends on, how far it is, what went wrong in it."""

from __future__ import annotations

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import builds

GXX = """[3/8] Building CXX object src/a.cpp.o
[4/8] Building CXX object src/b.cpp.o
FAILED: src/b.cpp.o
/usr/bin/c++ -O3 -o src/b.cpp.o -c /src/b.cpp
In file included from /src/b.cpp:1:
/src/b.h: In function 'int f()':
/src/b.h:7:10: error: 'nope' was not declared in this scope
    7 |   return nope;
/src/b.cpp:9:1: error: expected ';'
ninja: build stopped: subcommand failed.
"""
FULL = """[9/10] Building CXX object src/z.cpp.o
/src/z.cpp:3:10: fatal error: error writing to /tmp/ccXYZ.s: No space left on device
ninja: build stopped: subcommand failed.
"""
MEMORY = """[9/10] Building CXX object src/z.cpp.o
c++: fatal error: Killed signal terminated program cc1plus
compilation terminated.
"""
CMAKE = """-- The C compiler identification is GNU 12.2.0
CMake Error at ggml/src/ggml-cuda/CMakeLists.txt:201 (message):
  CUDA Toolkit not found


-- Configuring incomplete, errors occurred!
"""
NVCC = """[1/2] Building CUDA object a.cu.o
nvcc fatal   : Unsupported gpu architecture 'compute_50'
ninja: build stopped: subcommand failed.
"""
CUDA = """[1/2] Building CUDA object a.cu.o
/src/a.cu(12): error: identifier "foo" is undefined
1 error detected in the compilation of "/src/a.cu".
"""
LINK = """[2/2] Linking CXX executable bin/x
/usr/bin/ld: x.o: in function `main': x.cpp:(.text+0x5): undefined reference to `gone()'
collect2: error: ld returned 1 exit status
"""


@pytest.mark.parametrize(
    ("log", "kind", "words"),
    [
        (GXX, "compiler", "/src/b.h:7:10: error: 'nope' was not declared in this scope"),
        (FULL, "disk", "No space left on device"),
        (MEMORY, "memory", "Killed signal terminated program cc1plus"),
        (CMAKE, "compiler", "CMakeLists.txt:201 (message): CUDA Toolkit not found"),
        (NVCC, "compiler", "nvcc fatal : Unsupported gpu architecture 'compute_50'"),
        (CUDA, "compiler", '/src/a.cu(12): error: identifier "foo" is undefined'),
        (LINK, "compiler", "undefined reference to `gone()'"),
        ("ninja: error: loading 'build.ninja': No such file", "compiler", "ninja: error: loading"),
        ("something else\nthe last word\n\n", "compiler", "the last word"),
        ("", "compiler", "it said nothing"),
    ],
)
def test_the_cause_is_named_on_one_line(log: str, kind: str, words: str) -> None:
    found = builds.first_error(log)
    assert found[0] == kind
    assert words in found[1]
    assert "\n" not in found[1]


def test_a_long_line_is_cut() -> None:
    _kind, words = builds.first_error("/a.cpp:1:1: error: " + "x" * 5000)
    assert len(words) == builds.LONGEST
    assert words.endswith("...")


def test_progress_is_the_last_step() -> None:
    assert builds.progress(GXX) == (4, 8)
    assert builds.progress("-- Configuring done\n") is None


@pytest.mark.parametrize(
    ("steps", "total", "seconds"),
    [
        ([(0.0, 0), (10.0, 5)], 20, 30.0),
        ([(0.0, 3)], 20, None),
        ([], 20, None),
        ([(0.0, 3), (10.0, 3)], 20, None),
        ([(0.0, 0), (10.0, 20)], 20, 0.0),
    ],
)
def test_remaining_time(steps: list[tuple[float, int]], total: int, seconds: float | None) -> None:
    assert builds.remaining_seconds(steps, total) == seconds


def test_digest_is_of_content_and_not_of_order() -> None:
    one = builds.digest_of({"a": 1, "b": [1, 2]})
    assert one == builds.digest_of({"b": [1, 2], "a": 1})
    assert one != builds.digest_of({"a": 1, "b": [2, 1]})
    assert builds.folder_of("/opt/x", "b1", one) == f"/opt/x/b1-{one[:8]}"


def test_code_is_chosen_by_instructions_and_not_by_the_kernels_flags() -> None:
    text = "processor : 0\nflags\t\t: fpu ht fma avx2 avx512f ibrs\n\nprocessor : 1\nflags\t\t: fpu sse4_2\n"
    assert builds.isa(text) == "avx2 avx512f fma"
    assert builds.isa("Features : asimd\n") == ""
