"""PCI functions and network cards, from trees as the kernel shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ansible_collections.dsprov.appliance.plugins.module_utils import devices
from ansible_collections.dsprov.appliance.plugins.module_utils.nvml import Device, Reading
from ansible_collections.dsprov.appliance.plugins.modules import probe
from tests.lab import hardware


def tree(root: Path, files: dict[str, str]) -> str:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return str(root)


def bus(root: Path, machine: str) -> list[devices.Function]:
    files = hardware.pci_tree(hardware.parse(machine))
    return devices.pci(tree(root, {f"bus/pci/devices/{path}": text for path, text in files.items()}))


def function(kind: str, vendor: str, device: str, slot: int = 1) -> devices.Function:
    return devices.Function((0, slot, 0), vendor, device, kind)


def test_cards_before_any_driver(tmp_path: Path) -> None:
    functions = bus(tmp_path, "8 x H20")
    assert devices.nvswitch(functions)
    rows = probe.gpus(functions, Reading())
    assert rows == 8 * [
        {
            "vendor": "nvidia",
            "name": "NVIDIA device 0x2329",
            "pci_id": "10de:2329",
            "driver_version": None,
        }
    ]


def test_a_machine_without_cards(tmp_path: Path) -> None:
    functions = bus(tmp_path, "none")
    assert functions
    assert not devices.nvswitch(functions)
    assert probe.gpus(functions, Reading()) == []


def test_no_pci_at_all(tmp_path: Path) -> None:
    assert devices.pci(str(tmp_path)) == []


def test_a_card_that_the_driver_does_not_answer_for_is_still_there(tmp_path: Path) -> None:
    functions = bus(tmp_path, "2 x 4090")
    seen = Device("NVIDIA GeForce RTX 4090", (0, 0x10, 0), "10de:2684", 25757220864, "8.9")
    rows = probe.gpus(functions, Reading(driver_version="580.95.05", devices=(seen,)))
    assert [(row["pci_id"], row["driver_version"]) for row in rows] == [
        ("10de:2684", "580.95.05"),
        ("10de:2684", None),
    ]


def test_other_makers_accelerators_but_no_office_graphics() -> None:
    found = devices.cards(
        [
            function("1200", "19e5", "d802"),
            function("0380", "1002", "74a1"),
            function("0b40", "1d94", "6211"),
            function("0300", "1002", "164e"),  # graphics of a desktop processor
            function("0300", "1a03", "2000"),  # graphics of a server's BMC
            function("0403", "10de", "22ba"),  # sound of an NVIDIA card
        ]
    )
    assert [maker for _function, maker in found] == ["huawei", "amd", "hygon"]


def test_network_cards(tmp_path: Path) -> None:
    files = {
        "sys/class/net/lo/type": "772\n",
        "sys/class/net/docker0/type": "1\n",
        "sys/class/net/docker0/bridge/bridge_id": "x\n",
        "sys/class/net/veth1/type": "1\n",
        "sys/class/net/ens1/type": "1\n",
        "sys/class/net/ens1/speed": "100000\n",
        "sys/class/net/ens1/device/vendor": "0x15b3\n",
        "sys/class/net/ens2/type": "1\n",
        "sys/class/net/ens2/speed": "-1\n",
        "sys/class/net/ens2/device/vendor": "0x8086\n",
        "sys/class/net/ens3/type": "1\n",
        "sys/class/net/ens3/speed": "4294967295\n",
        "sys/class/net/ens3/device/vendor": "0x8086\n",
        "sys/class/net/$(id)/type": "1\n",
        "sys/class/net/$(id)/device/vendor": "0x8086\n",
        "sys/class/net/br0/type": "1\n",
        "sys/class/net/bond0/type": "1\n",
        "sys/class/net/bond0/speed": "200000\n",
        "sys/class/net/bond0/bonding/slaves": "ens1\n",
        "sys/class/infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n",
        "sys/class/infiniband_verbs/uverbs0/ibdev": "mlx5_0\n",
        "sys/class/infiniband_verbs/abi_version": "6\n",
        "proc/net/route": "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n"
        "br0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
        "proc/net/if_inet6": "fe800000000000000000000000000001 02 40 20 80     br0\n"
        "fd000000000000000000000000000007 02 40 00 80     br0\n",
    }
    root = tree(tmp_path, files)
    (tmp_path / "sys/class/infiniband/mlx5_0/device").symlink_to(tmp_path / "sys/class/net/ens1/device")
    assert devices.nics(f"{root}/sys", f"{root}/proc") == [
        {"name": "bond0", "speed_mbps": 200000, "rdma": True},
        {"name": "br0", "address": "fd00::7", "network": "fd00::/64", "rdma": False},
        {"name": "ens1", "speed_mbps": 100000, "rdma": True},
        {"name": "ens2", "rdma": False},
        {"name": "ens3", "rdma": False},
    ]


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ({"infiniband/mlx5_0/ports/1/state": "1: DOWN\n"}, "mlx5_0 port 1 is DOWN"),
        ({"infiniband/mlx5_0/ports/1/state": ""}, "mlx5_0 port 1 is unknown"),
        ({"infiniband/mlx5_0/node_type": "1: CA\n"}, "mlx5_0 has no ports"),
        (
            {"infiniband/mlx5_0/ports/1/state": "4: ACTIVE\n"},
            "mlx5_0 is closed to programs: module ib_uverbs is not loaded",
        ),
        (
            {
                "infiniband/mlx5_0/ports/1/state": "1: DOWN\n",
                "infiniband/mlx5_0/ports/2/state": "4: ACTIVE\n",
                "infiniband_verbs/uverbs0/ibdev": "mlx5_0\n",
            },
            "",
        ),
    ],
)
def test_rdma_that_does_not_work_says_why(tmp_path: Path, files: dict[str, str], fault: str) -> None:
    card = {"net/ib0/type": "32\n", "net/ib0/device/vendor": "0x15b3\n"}
    root = tree(tmp_path, {f"sys/class/{name}": text for name, text in {**card, **files}.items()})
    (tmp_path / "sys/class/infiniband/mlx5_0/device").symlink_to(tmp_path / "sys/class/net/ib0/device")
    (row,) = devices.nics(f"{root}/sys", f"{root}/proc")
    assert (row["rdma"], row.get("rdma_fault", "")) == (not fault, fault)


def test_this_machines_own_address() -> None:
    """Whatever it is: an address of the loopback must come out of the kernel's answer whole."""
    assert str(devices._ipv4("lo")) == "127.0.0.1/8"
    assert devices._ipv4("none-such") is None
