"""Which NVIDIA driver a host gets: tables of machines, of what is there already, of repositories."""

from __future__ import annotations

from typing import Any

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import nvidia_driver as rules
from ansible_collections.dsprov.appliance.plugins.module_utils.nvidia_driver import Decision, Wishes
from ansible_collections.dsprov.appliance.plugins.plugin_utils.catalogue import catalogue, problems

TABLE = catalogue()["nvidia"]
GPUS = catalogue()["gpus"]
KERNEL = "6.1.0-50-amd64"


def facts(
    system: str = "debian 12", gpu: str | None = "rtx-4090", count: int = 1, **more: Any
) -> dict[str, Any]:
    """A host's facts with cards as PCI shows them before any driver."""
    name, _, version = system.partition(" ")
    codenames = {"12": "bookworm", "13": "trixie", "22.04": "jammy", "24.04": "noble"}
    device = GPUS[gpu]["pci_ids"][0] if gpu else ""
    card = {"vendor": "nvidia", "name": f"NVIDIA device 0x{device[5:]}", "pci_id": device}
    cards = [card] * count if gpu else []
    system_facts = {"id": name, "version_id": version, "arch": "x86_64", "codename": codenames[version]}
    return {"os": {**system_facts, "kernel": KERNEL}, "gpus": cards, **more}


def look(*packages: str, **more: Any) -> dict[str, Any]:
    """What the module reads of a host; packages as NAME=VERSION!STATUS@ORIGIN."""
    rows = []
    for text in packages:
        name, _, rest = text.partition("=")
        rest, _, origin = rest.partition("@")
        version, _, status = rest.partition("!")
        status = status or "installed"
        rows.append({"name": name, "version": version, "status": status, "origin": origin, "want": "install"})
    empty = {"runfile": "", "receipt": {}, "loaded": "", "key_enrolled": False, "targets": []}
    return {"packages": rows, **empty, **more}


def decide(host: dict[str, Any], seen: dict[str, Any] | None = None, **wishes: Any) -> Decision:
    return rules.decide(host, seen or look(), Wishes(**wishes), TABLE, GPUS, problems())


def codes(found: Any) -> list[str]:
    return [problem["code"] for problem in found.problems]


# -- branch, flavour and source ----------------------------------------------------------------------

CHOICES = [
    # system, card, cards, wishes -> row, branch, flavour
    ("debian 12", "rtx-4090", 1, {}, "debian-nvidia-12", 580, "open"),
    ("debian 13", "rtx-4090", 4, {}, "debian-nvidia-13", 580, "open"),
    ("ubuntu 22.04", "rtx-4090", 2, {}, "ubuntu-distribution", 580, "open"),
    ("ubuntu 24.04", "h20-96", 1, {}, "ubuntu-distribution", 580, "open"),
    ("ubuntu 24.04", "rtx-4090", 1, {"source": "nvidia"}, "ubuntu-nvidia", 580, "open"),
    # Volta: R580 is its last, and it has no open modules.
    ("ubuntu 22.04", "v100-32", 4, {}, "ubuntu-distribution", 580, "proprietary"),
    ("debian 12", "v100-16", 1, {}, "debian-nvidia-12", 580, "proprietary"),
    ("debian 12", "v100-16", 1, {"source": "distribution"}, "debian-distribution-12", 535, "proprietary"),
    # Blackwell demands open ones.
    ("debian 12", "rtx-5090", 2, {}, "debian-nvidia-12", 580, "open"),
    ("ubuntu 24.04", "rtx-5090", 2, {"branch": 570}, "ubuntu-distribution", 570, "open"),
    # In 535 and 550 the open modules are good enough for cards of data centres, not yet for those of games.
    ("debian 12", "rtx-4090", 1, {"source": "distribution"}, "debian-distribution-12", 535, "proprietary"),
    ("debian 12", "h100-80", 1, {"source": "distribution"}, "debian-distribution-12", 535, "open"),
    ("debian 13", "rtx-3090", 1, {"source": "distribution"}, "debian-distribution-13", 550, "proprietary"),
    ("debian 13", "h20-141", 1, {"source": "distribution"}, "debian-distribution-13", 550, "open"),
    ("debian 12", "rtx-4090", 1, {"source": "distribution", "flavour": "open"}, "debian-distribution-12", 535,
     "open"),
    # An engine's floor leaves out what is too old, and a wish is followed.
    ("debian 13", "t4", 1, {"floor": 550}, "debian-nvidia-13", 580, "open"),
    ("debian 12", "t4", 1, {"branch": 590}, "debian-nvidia-12", 590, "open"),
    ("debian 12", "t4", 1, {"version": "595.45.04"}, "debian-nvidia-12", 595, "open"),
    ("debian 12", "t4", 1, {"floor": 590}, "debian-nvidia-12", 590, "open"),
]  # fmt: skip


@pytest.mark.parametrize(("system", "gpu", "count", "wishes", "row", "branch", "flavour"), CHOICES)
def test_what_is_chosen(
    system: str, gpu: str, count: int, wishes: dict[str, Any], row: str, branch: int, flavour: str
) -> None:
    made = decide(facts(system, gpu, count), **wishes)
    assert codes(made) == []
    assert (made.action, made.row, made.branches[0], made.flavour) == ("install", row, branch, flavour)
    assert not made.fabric


REFUSALS = [
    ("debian 12", "rtx-4090", {"source": "distribution", "floor": 580}, "driver-source", ["535", "nvidia"]),
    ("debian 12", "rtx-4090", {"branch": 999}, "driver-source", ["999", "debian 12"]),
    ("debian 13", "rtx-5090", {"source": "distribution"}, "driver-source", ["570", "550"]),
    ("debian 12", "v100-16", {"branch": 590}, "driver-too-new", ["V100", "580"]),
    ("debian 12", "v100-16", {"floor": 590}, "driver-source", ["590"]),
    ("ubuntu 24.04", "rtx-5090", {"branch": 535}, "driver-too-old", ["535", "570"]),
    ("debian 12", "v100-16", {"flavour": "open"}, "driver-flavour", ["V100", "proprietary"]),
    ("debian 12", "rtx-5090", {"flavour": "proprietary"}, "driver-flavour", ["5090", "open"]),
]  # fmt: skip


@pytest.mark.parametrize(("system", "gpu", "wishes", "code", "says"), REFUSALS)
def test_what_cannot_be_is_refused(
    system: str, gpu: str, wishes: dict[str, Any], code: str, says: list[str]
) -> None:
    made = decide(facts(system, gpu), **wishes)
    assert codes(made) == [code]
    assert not made.ok
    words = made.problems[0]["message"]["en"]
    assert all(word in words for word in says), words


def test_cards_that_no_driver_serves_together() -> None:
    host = facts(gpu="v100-16")
    host["gpus"] += facts(gpu="rtx-5090")["gpus"]
    assert codes(decide(host)) == ["driver-mixed"]


def test_no_card_no_driver() -> None:
    host = facts(gpu=None)
    host["gpus"] = [{"vendor": "amd", "name": "AMD Instinct MI300X"}]
    assert decide(host).action == "none"
    baked = decide(host, bake=True)
    assert (baked.action, baked.branches[0], baked.flavour) == ("install", 580, "open")


def test_a_card_of_nobody_s_catalogue_gets_the_default() -> None:
    host = facts()
    host["gpus"] = [{"vendor": "nvidia", "name": "NVIDIA device 0x9999", "pci_id": "10de:9999"}]
    made = decide(host)
    assert (made.ok, made.branches[0]) == (True, 580)


# -- switches ----------------------------------------------------------------------------------------


def test_nvswitch_brings_fabric_manager() -> None:
    made = decide(facts("ubuntu 22.04", "h20-96", 8, nvswitch=True))
    assert (made.row, made.fabric, made.nvlink5) == ("ubuntu-distribution", True, False)
    names = rules.names(made, TABLE["rows"][made.row], 580, KERNEL)
    assert "nvidia-fabricmanager-580" in names["exact"], "of the driver's own version"
    assert not decide(facts("ubuntu 22.04", "h20-96", 8, nvswitch=True), fabric="false").fabric
    assert decide(facts("ubuntu 22.04", "h20-96", 8), fabric="true").fabric


def test_a_source_without_fabric_manager_does_not_do() -> None:
    host = facts("debian 12", "h100-80", 8, nvswitch=True)
    made = decide(host, source="distribution")
    assert codes(made) == ["driver-source"]
    assert "no fabric manager" in made.problems[0]["message"]["en"]
    assert decide(host).row == "debian-nvidia-12"


def test_nvlink5_shows_on_no_bus_and_wants_more() -> None:
    """The switches of a B200 machine hang on its network cards, so the cards alone tell."""
    made = decide(facts("ubuntu 24.04", "b200", 8))
    assert (made.row, made.fabric, made.nvlink5) == ("ubuntu-nvidia", True, True)
    names = rules.names(made, TABLE["rows"][made.row], 580, KERNEL)
    assert "libnvsdm" in names["exact"]
    assert "nvlsm" in names["loose"], "the subnet manager has versions of its own"


# -- Secure Boot -------------------------------------------------------------------------------------


def test_secure_boot_takes_the_signed_modules() -> None:
    made = decide(facts("ubuntu 24.04", secure_boot=True))
    assert (made.ok, made.signed) == (True, True)
    names = rules.names(made, TABLE["rows"][made.row], 580, "6.8.0-110-generic")
    assert "linux-modules-nvidia-580-server-open-6.8.0-110-generic" in names["loose"]
    assert names["headers"] == []
    assert not any("dkms" in name for group in names.values() for name in group if "no-dkms" not in name)


def test_secure_boot_stops_what_would_not_load() -> None:
    host = facts("debian 12", secure_boot=True)
    assert codes(decide(host)) == ["secure-boot"]
    assert problems().at_install(decide(host).problems[0])["severity"] == "error"
    assert codes(decide(host, look(key_enrolled=True))) == [], "the firmware knows DKMS's key"
    assert codes(decide(host, bake=True)) == [], "whoever boots the image has a firmware of its own"


# -- what is there already ---------------------------------------------------------------------------

DISTRIBUTION = (
    "nvidia-driver-570-server=570.86.15-0ubuntu1@Ubuntu",
    "nvidia-dkms-570-server=570.86.15-0ubuntu1@Ubuntu",
)
THERE = [
    (look("nvidia-kernel-dkms=535.309.01-0+deb12u1@Debian"), "distribution", "535.309.01"),
    (look(*DISTRIBUTION), "distribution", "570.86.15"),
    (look("nvidia-kernel-open-dkms=580.95.05-1@NVIDIA CUDA", loaded="580.95.05"), "nvidia", "580.95.05"),
    (look("nvidia-driver-580=1:580.95.05-0ppa1@"), "other", "580.95.05"),
    (look(runfile="580.95.05"), "runfile", "580.95.05"),
    (look(loaded="580.95.05"), "other", "580.95.05"),
    (look(library="580.95.05"), "other", "580.95.05"),
]


@pytest.mark.parametrize(("seen", "origin", "version"), THERE)
def test_a_driver_of_somebody_else_is_kept(seen: dict[str, Any], origin: str, version: str) -> None:
    made = decide(facts("ubuntu 24.04"), seen)
    assert (made.action, made.found.origin, made.found.version) == ("keep", origin, version)
    assert codes(made) == []


@pytest.mark.parametrize(
    "packages", [(), ("nvidia-container-toolkit=1.19.0-1",), ("libnvidia-container1=1.19.0-1",)]
)
def test_what_is_no_driver(packages: tuple[str, ...]) -> None:
    assert decide(facts(), look(*packages)).found.origin == ""


def test_what_was_removed_is_not_there() -> None:
    assert decide(facts(), look("nvidia-kernel-dkms=535.309.01-1!config-files@Debian")).action == "install"


def test_one_that_is_too_old_for_the_engine_is_named_and_replaced_only_when_told() -> None:
    seen = look(*DISTRIBUTION)
    made = decide(facts("ubuntu 24.04"), seen, floor=580)
    assert (made.action, codes(made)) == ("keep", ["driver-too-old"])
    made = decide(facts("ubuntu 24.04"), seen, floor=580, existing="replace")
    assert (made.action, codes(made)) == ("install", [])
    assert set(made.purge) == {"nvidia-driver-570-server", "nvidia-dkms-570-server"}


def test_a_runfile_is_never_overwritten_by_packages() -> None:
    made = decide(facts(), look(runfile="570.86.15"), existing="replace")
    assert codes(made) == ["driver-runfile"]


def test_half_of_a_driver_is_named() -> None:
    seen = look("nvidia-kernel-dkms=535.309.01-1!half-configured@Debian", "nvidia-smi=535.309.01-1@Debian")
    made = decide(facts(), seen)
    assert codes(made) == ["driver-half-installed"]
    assert "nvidia-kernel-dkms" in made.problems[0]["message"]["en"]
    assert decide(facts(), seen, existing="replace").ok


# -- versions ----------------------------------------------------------------------------------------

# Debian 12 as it was on 2026-11-22: a security update of all but the open modules.
BOTH = ["535.309.01-0+deb12u1", "535.261.03-1"]
BOOKWORM = {
    **dict.fromkeys(TABLE["rows"]["debian-distribution-12"]["exact"], BOTH),
    "nvidia-kernel-dkms": BOTH,
    "nvidia-open-kernel-dkms": ["535.261.03-1"],
    "nvidia-persistenced": ["535.171.04-1~deb12u1"],
    "nvidia-modprobe": ["535.309.01-0+deb12u1", "535.161.07-1~deb12u1"],
    "dkms": ["3.0.10-8+deb12u1"],
    "linux-headers-amd64": ["6.1.192-2", "6.1.176-1"],
    f"linux-headers-{KERNEL}": ["6.1.176-1"],
}


def resolve(
    made: Decision, available: Any, headers: bool = False, kernel: str = KERNEL, **wishes: Any
) -> Any:
    return rules.resolve(made, available, kernel, headers, Wishes(**wishes), TABLE, problems())


@pytest.mark.parametrize(("flavour", "version"), [("open", "535.261.03"), ("proprietary", "535.309.01")])
def test_all_parts_are_of_one_version(flavour: str, version: str) -> None:
    wishes: dict[str, Any] = {"source": "distribution", "flavour": flavour}
    made = resolve(decide(facts(), **wishes), BOOKWORM, **wishes)
    assert codes(made) == []
    assert (made.version, made.branch) == (version, 535)
    assert f"Pin: version {version}*" in made.preferences
    assert f"linux-headers-{KERNEL}" in made.install
    assert "nvidia-persistenced" in made.install
    assert "nvidia-persistenced" not in made.held, "a tool with versions of its own"


def test_a_version_that_is_wished_must_be_there_whole() -> None:
    wishes: dict[str, Any] = {"source": "distribution", "flavour": "open", "version": "535.309.01"}
    made = resolve(decide(facts(), **wishes), BOOKWORM, **wishes)
    assert codes(made) == ["driver-version"]
    assert "535.261.03" in made.problems[0]["message"]["en"]


def test_a_branch_that_the_repository_lacks_gives_way_to_the_next() -> None:
    """NVIDIA's repository for Debian 13 began with 590."""
    made = decide(facts("debian 13"))
    row = TABLE["rows"]["debian-nvidia-13"]
    names = rules.asked(made, TABLE, KERNEL)
    available = {name: ["590.48.01-1", "590.44.01-1"] for name in names}
    answer = resolve(made, available)
    assert (answer.version, answer.branch, codes(answer)) == ("590.48.01", 590, [])
    assert set(row["exact"]) <= set(answer.held)
    wished = resolve(decide(facts("debian 13"), branch=580), available, branch=580)
    assert codes(wished) == ["driver-version"]


def test_versions_are_numbers_and_not_text() -> None:
    made = decide(facts("ubuntu 24.04"))
    names = rules.asked(made, TABLE, KERNEL)
    available = {name: ["580.95.05-0ubuntu1", "580.126.20-0ubuntu0.24.04.1"] for name in names}
    assert resolve(made, available).version == "580.126.20"


def test_missing_headers_are_named_before_anything_changes() -> None:
    wishes = {"source": "distribution"}
    kernel = "6.18.44-custom"
    available = {**BOOKWORM, f"linux-headers-{kernel}": []}
    made = resolve(decide(facts(), **wishes), available, kernel=kernel, **wishes)
    assert codes(made) == ["kernel-headers"]
    assert kernel in made.problems[0]["message"]["en"]
    assert codes(resolve(decide(facts(), **wishes), available, True, kernel, **wishes)) == []


def test_an_image_is_built_for_the_kernel_that_it_will_boot() -> None:
    """The newest one that lies in it; where none does yet, the distribution's newest."""
    wishes: dict[str, Any] = {"source": "distribution", "flavour": "open", "bake": True}
    releases = ["6.1.0-47-amd64", "6.1.0-100-amd64", "6.1.0-99-amd64", "6.1.0-101-amd64"]
    rows = [{"release": one, "headers": True, "image": one != "6.1.0-101-amd64"} for one in releases]
    kernel = rules.kernel_to_build_for({"kernel": "6.18.44", "kernels": rows}, Wishes(**wishes))
    assert kernel == "6.1.0-100-amd64"
    available = {**BOOKWORM, "linux-headers-6.1.0-100-amd64": ["6.1.176-1"]}
    made = resolve(decide(facts(), **wishes), available, kernel=kernel, **wishes)
    assert codes(made) == [], "its name tells nothing of 6.1.176, its headers do"
    assert "linux-headers-6.1.0-100-amd64" in made.install
    assert "linux-headers-amd64" not in made.install
    available["linux-headers-6.1.0-100-amd64"] = ["6.1.187-1"]
    assert codes(resolve(decide(facts(), **wishes), available, kernel=kernel, **wishes)) == ["driver-kernel"]
    del available["linux-headers-6.1.0-100-amd64"]
    assert codes(resolve(decide(facts(), **wishes), available, kernel=kernel, **wishes)) == ["kernel-headers"]
    empty = rules.kernel_to_build_for({"kernel": "6.18.44", "kernels": rows[-1:]}, Wishes(**wishes))
    assert empty == ""
    wishes["flavour"] = "proprietary"
    made = resolve(decide(facts(), **wishes), BOOKWORM, kernel=empty, **wishes)
    assert codes(made) == []
    assert "linux-headers-amd64" in made.install
    assert rules.kernel_to_build_for({"kernel": "6.18.44", "kernels": rows}, Wishes()) == "6.18.44"


SEEN = [
    # what apt has of the running kernel's headers and of any, whether they are there -> what is said
    ([], ["6.1.192-2"], False, ["kernel-headers"]),
    (["6.1.176-1"], ["6.1.192-2"], False, []),
    ([], ["6.1.192-2"], True, []),
    ([], [], False, []),
]


@pytest.mark.parametrize(("own", "newest", "there", "says"), SEEN)
def test_missing_headers_are_named_before_any_repository_is_listed(
    own: list[str], newest: list[str], there: bool, says: list[str]
) -> None:
    made, row = decide(facts()), TABLE["rows"]["debian-nvidia-12"]
    seen = look(kernels=[{"release": KERNEL, "headers": there, "image": True}])
    names = rules.headers_asked(made, seen, KERNEL, row)
    assert bool(names) is not there
    if names:
        available = dict(zip(names, (own, newest), strict=True))
        assert [one["code"] for one in rules.missing_headers(KERNEL, names, available, problems())] == says


def test_what_is_not_built_wants_no_headers() -> None:
    signed = decide(facts("ubuntu 24.04", secure_boot=True))
    row = TABLE["rows"][signed.row]
    assert rules.headers_asked(signed, look(kernels=[]), KERNEL, row) == []
    baked = decide(facts(gpu=None), bake=True)
    assert rules.headers_asked(baked, look(kernels=[]), "", TABLE["rows"][baked.row]) == []


TRIXIE = {
    **{name: ["550.163.01-2"] for name in TABLE["rows"]["debian-distribution-13"]["exact"]},
    "nvidia-kernel-dkms": ["550.163.01-2"],
    "nvidia-open-kernel-dkms": ["550.163.01-2"],
    "nvidia-persistenced": ["550.163.01-1"],
    "nvidia-modprobe": ["570.133.07-1"],
    "dkms": ["3.2.2-1~deb13u1"],
}
KERNELS = [("6.12.107+deb13-amd64", True), ("6.12.117+deb13-amd64", True), ("7.3.4+deb13-amd64", True),
           ("6.12.94+deb13-amd64", False), ("6.1.0-50-amd64", False)]  # fmt: skip


@pytest.mark.parametrize(("kernel", "fails"), KERNELS)
def test_a_driver_that_is_known_not_to_build(kernel: str, fails: bool) -> None:
    wishes = {"source": "distribution"}
    headers = {f"linux-headers-{kernel}": [f"{kernel.partition('+')[0]}-1"]}
    available = {**TRIXIE, **headers, "linux-headers-amd64": ["6.12.117-1"]}
    made = resolve(decide(facts("debian 13"), **wishes), available, kernel=kernel, **wishes)
    assert codes(made) == (["driver-kernel"] if fails else [])
    assert (
        codes(resolve(decide(facts("debian 13"), **wishes), available, kernel=kernel, try_unbuildable=True))
        == []
    )


def test_an_update_of_the_kernel_can_end_a_driver() -> None:
    """Debian 12's open modules build for its kernels up to 6.1.176."""
    wishes: dict[str, Any] = {"source": "distribution", "flavour": "open", "bake": True}
    old = {**BOOKWORM, "linux-headers-amd64": ["6.1.176-1"]}
    assert codes(resolve(decide(facts(), **wishes), old, kernel="", **wishes)) == []
    made = resolve(decide(facts(), **wishes), BOOKWORM, kernel="", **wishes)
    assert codes(made) == ["driver-kernel"]
    assert "6.1.192" in made.problems[0]["message"]["en"]


@pytest.mark.parametrize(
    ("kernel", "has"),
    [("6.1.176", False), ("6.1.187", True), ("6.1.192", True), ("6.5.13", False), ("6.12.95", False),
     ("6.12.107", True), ("6.18.0", True), ("7.0.1", True), ("5.10.250", False)],
)  # fmt: skip
def test_a_change_comes_to_each_series_of_kernels_by_itself(kernel: str, has: bool) -> None:
    assert rules.is_from(kernel, ["6.1.187", "6.12.107"]) is has


def test_what_one_distribution_s_driver_cannot_is_nothing_to_another_s() -> None:
    """Ubuntu patches its own of the same version."""
    wishes: dict[str, Any] = {"branch": 535, "flavour": "open"}
    made = decide(facts("ubuntu 24.04"), **wishes)
    kernel = "6.14.0-37-generic"
    available = {name: ["535.261.03-0ubuntu0.24.04.1"] for name in rules.asked(made, TABLE, kernel)}
    assert codes(resolve(made, available, kernel=kernel, **wishes)) == []


def test_an_image_is_asked_by_the_headers_that_it_gets() -> None:
    wishes: dict[str, Any] = {"source": "distribution", "bake": True}
    available = {**TRIXIE, "linux-headers-amd64": ["6.12.117-1", "6.12.107-1"]}
    made = resolve(decide(facts("debian 13"), **wishes), available, kernel="", **wishes)
    assert codes(made) == ["driver-kernel"]
    assert "6.12.117" in made.problems[0]["message"]["en"]


# -- what an earlier run left ------------------------------------------------------------------------


def ours(**more: Any) -> dict[str, Any]:
    receipt = {
        "state": "installed", "row": "ubuntu-distribution", "branch": 570, "version": "570.86.15",
        "flavour": "open", "signed": False, "fabric": False, "nvlink5": False,
        "held": ["nvidia-utils-570-server"],
    }  # fmt: skip
    return look("nvidia-utils-570-server=570.86.15-0ubuntu1@Ubuntu", receipt={**receipt, **more})


def settled(seen: dict[str, Any], host: dict[str, Any] | None = None, **wishes: Any) -> str:
    host = host or facts("ubuntu 24.04")
    return rules.settled(decide(host, seen, **wishes), seen, Wishes(**wishes), TABLE).version


def test_our_driver_stays_until_a_wish_changes() -> None:
    """A newer catalogue is no reason to exchange a driver under a machine that works."""
    assert settled(ours()) == "570.86.15"
    assert settled(ours(), flavour="open", source="distribution") == "570.86.15"
    for wish in (
        {"branch": 580},
        {"floor": 580},
        {"flavour": "proprietary"},
        {"source": "nvidia"},
        {"version": "570.90.01"},
    ):
        assert settled(ours(), **wish) == "", wish
    assert settled(ours(), facts("ubuntu 24.04", "h100-80", 8, nvswitch=True)) == "", (
        "switches came to the cards"
    )


@pytest.mark.parametrize(
    "receipt", [{"state": "installing"}, {"held": ["gone"]}, {"row": "of a later release"}]
)
def test_what_was_cut_off_is_begun_again(receipt: dict[str, Any]) -> None:
    seen = ours(**receipt)
    assert decide(facts("ubuntu 24.04"), seen).action == "install"
    assert settled(seen) == ""


# -- what apt must be told ---------------------------------------------------------------------------

DEB = "http://deb.example/debian/"
SECURITY = "http://deb.example/debian-security/"


def target(uri: str, release: str, component: str = "main", key: str = "/k.gpg") -> dict[str, str]:
    return {"uri": uri, "release": release, "component": component, "signed_by": key}


def test_missing_components_come_from_the_host_s_own_mirrors() -> None:
    row = TABLE["rows"]["debian-distribution-12"]
    targets = [
        target(DEB, "bookworm"),
        target(DEB, "bookworm", "contrib"),
        target(SECURITY, "bookworm-security", key=""),
        target("https://download.docker.com/linux/debian/", "bookworm", "stable"),
    ]
    text = rules.lists(row, facts()["os"], targets)["distribution"]
    first, second = text.removeprefix("# Made by dsprov.\n").strip().split("\n\n")
    assert first.splitlines() == [
        "Types: deb", f"URIs: {DEB}", "Suites: bookworm", "Components: non-free non-free-firmware",
        "Signed-By: /k.gpg",
    ]  # fmt: skip
    assert "contrib non-free non-free-firmware" in second
    assert "Signed-By" not in second
    assert "docker" not in text
    every = [target(DEB, "bookworm", one) for one in row["components"]]
    assert rules.lists(row, facts()["os"], every)["distribution"] == ""


def test_a_repository_that_the_owner_listed_is_not_listed_twice() -> None:
    """apt refuses one place with two different keys."""
    row = TABLE["rows"]["ubuntu-nvidia"]
    os = facts("ubuntu 22.04")["os"]
    made = rules.lists(row, os, [target("http://archive.example/ubuntu/", "jammy")])["repository"]
    assert (made["path"], made["key"]) == ("ubuntu2204/x86_64", "3bf863cc.pub")
    theirs = target("https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/", "", "")
    assert rules.lists(row, os, [theirs])["repository"] == {}


SOURCES = """# comment
Types: deb deb-src
URIs: http://other.example/debian
Suites: bookworm
Components: main
Signed-By: /other.gpg

Types: deb
URIs: http://one.example/debian/ http://deb.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""
ENTRIES = [
    ("deb [signed-by=/k.gpg] http://deb.example/debian bookworm main\n", "/k.gpg"),
    ("deb [ arch=amd64 signed-by=/k.gpg ] http://deb.example/debian/ bookworm main contrib\n", "/k.gpg"),
    ("deb [signed-by=/k.gpg] http://deb.example/debian trixie main\n", ""),
    ("deb http://deb.example/debian bookworm main\n", ""),
    ("#deb [signed-by=/k.gpg] http://deb.example/debian bookworm main\n", ""),
    (SOURCES, "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc"),
    (SOURCES.replace("http://deb.example/debian", "http://x"), ""),
    ("", ""),
]


@pytest.mark.parametrize(("text", "key"), ENTRIES)
def test_the_key_of_a_place(text: str, key: str) -> None:
    assert rules.signed_by(text, DEB, "bookworm") == key


# -- logs --------------------------------------------------------------------------------------------

LOG = """DKMS make.log for nvidia-current-open-550.163.01 for kernel 6.12.117+deb13-amd64 (x86_64)
make: Entering directory '/var/lib/dkms/nvidia-current-open/550.163.01/build'
  CC [M]  /var/lib/dkms/nvidia-current-open/550.163.01/build/nvidia/nv-error-codes.o
/var/lib/dkms/nvidia-current-open/550.163.01/build/nvidia/nv-pci.c:171:9: error: too few arguments for 'x'
make[3]: *** [Makefile:229: nv-pci.o] Error 1
"""
ERRORS = [
    (LOG, "nvidia/nv-pci.c:171:9: error: too few arguments for 'x'"),
    (
        "make: *** No rule to make target 'modules'.  Stop.\n",
        "make: *** No rule to make target 'modules'.  Stop.",
    ),
    ("/bin/sh: 1: gcc-12: not found\n", "/bin/sh: 1: gcc-12: not found"),
    ("a.c:1:1: warning: error prone\n", ""),
    ("", ""),
]


@pytest.mark.parametrize(("log", "error"), ERRORS)
def test_the_first_error_of_a_log(log: str, error: str) -> None:
    assert rules.first_error(log) == error
