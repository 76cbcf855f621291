"""Targets as typed, and which wheels they take; `packaging` and this very Python are the oracle."""

from __future__ import annotations

import dataclasses

import pytest
from packaging.tags import sys_tags

from edgekit.bundle.target import MACOS, Target, misfit, parse_target, this_target
from edgekit.errors import UsageError

LINUX = Target("linux", "x86_64", 11, "cpu", (2, 31))
ARM = Target("linux", "arm64", 12, "cpu", (2, 35))
MAC = Target("macos", "arm64", 12, "metal")
WINDOWS = Target("windows", "x86_64", 13, "cpu")


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("linux-x86_64-cp311-cpu", Target("linux", "x86_64", 11, "cpu", (2, 28))),
        ("linux-x86_64-cp311-cpu-glibc2.31", LINUX),
        ("linux-aarch64-cp312-cuda124", Target("linux", "arm64", 12, "cuda124", (2, 28))),
        ("linux-arm64-cp312-vulkan", Target("linux", "arm64", 12, "vulkan", (2, 28))),
        ("macos-arm64-cp312-metal", MAC),
        ("windows-x86_64-cp313-cpu", WINDOWS),
    ],
)
def test_a_target_reads_as_it_is_written(text: str, target: Target) -> None:
    assert parse_target(text) == target
    assert parse_target(target.text).text == target.text


@pytest.mark.parametrize(
    "text",
    [
        "", "linux", "linux-x86_64-cp310-cpu", "linux-x86_64-cp311-metal", "macos-arm64-cp312-cuda",
        "macos-arm64-cp312-metal-glibc2.31", "bsd-x86_64-cp311-cpu", "linux-riscv64-cp311-cpu",
        "linux-x86_64-py3-cpu", "linux-x86_64-cp311-cpu/../x", "linux-x86_64-cp311-cpu\n",
    ],
)  # fmt: skip
def test_other_words_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_target(text)
    assert refused.value.code == "bad_target"
    assert "linux-x86_64-cp311-cpu" in (refused.value.hint or "")


def test_cuda_and_platform() -> None:
    assert parse_target("linux-x86_64-cp311-cuda124").cuda == 12
    assert parse_target("linux-x86_64-cp311-cuda").cuda is None
    assert parse_target("linux-x86_64-cp311-rocm").cuda is None
    assert MAC.oci_platform == {"os": "darwin", "architecture": "arm64"}
    assert LINUX.oci_platform == {"os": "linux", "architecture": "amd64"}


@pytest.mark.parametrize(
    ("tag", "target", "why"),
    [
        ("py3-none-any", LINUX, None),
        ("py2.py3-none-any", MAC, None),
        ("cp311-cp311-manylinux_2_28_x86_64", LINUX, None),
        ("cp311-cp311-manylinux2014_x86_64.manylinux_2_17_x86_64", LINUX, None),
        ("cp311-cp311-manylinux_2_31_x86_64", LINUX, None),
        ("cp38-abi3-manylinux_2_17_x86_64", LINUX, None),
        ("py3-none-linux_x86_64", LINUX, None),
        ("cp312-cp312-manylinux_2_17_aarch64", ARM, None),
        ("cp312-cp312-macosx_11_0_arm64", MAC, None),
        ("cp312-cp312-macosx_10_13_universal2", MAC, None),
        ("cp313-cp313-win_amd64", WINDOWS, None),
        ("cp311-cp311-manylinux_2_32_x86_64", LINUX, "with glibc 2.31"),
        ("cp311-cp311-musllinux_1_2_x86_64", LINUX, "musllinux_1_2_x86_64, not for linux"),
        ("cp311-cp311-manylinux_2_17_aarch64", LINUX, "not for linux x86_64"),
        ("cp311-cp311-win_amd64", LINUX, "is for win_amd64, not for linux"),
        ("cp311-cp311-macosx_11_0_arm64", LINUX, "not for linux"),
        ("cp312-cp312-macosx_15_0_arm64", MAC, "not for macos"),
        ("cp312-cp312-macosx_11_0_x86_64", MAC, "not for macos arm64"),
        ("cp312-cp312-manylinux_2_17_x86_64", LINUX, "cp312-cp312, not for Python 3.11"),
        ("cp312-abi3-manylinux_2_17_x86_64", LINUX, "not for Python 3.11"),
        ("cp313-cp313t-win_amd64", WINDOWS, "cp313t"),
        ("py2-none-any", LINUX, "not for Python"),
        ("pp311-pypy311_pp73-manylinux_2_17_x86_64", LINUX, "not for Python"),
    ],
)
def test_a_wheel_fits_or_says_why_not(tag: str, target: Target, why: str | None) -> None:
    found = misfit(f"name-1.0-{tag}.whl", target)
    assert (found is None) == (why is None), found
    assert why is None or why in str(found)


@pytest.mark.parametrize("name", ["x.zip", "x-1.0.whl", "x.whl", "../x-1.0-py3-none-any"])
def test_what_is_no_wheel_is_refused(name: str) -> None:
    assert misfit(name, LINUX) == "is no wheel's file name"


def test_every_tag_of_this_python_fits_this_target() -> None:
    here = this_target()
    top = dataclasses.replace(here, backend="cpu")
    newest = f"macosx_{MACOS[0]}"
    for tag in sys_tags():
        if not tag.platform.startswith("macosx") or tag.platform.startswith(newest):
            assert misfit(f"n-1-{tag}.whl", top) is None, tag
