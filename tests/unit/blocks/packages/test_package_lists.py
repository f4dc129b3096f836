"""Lists of packages in the forms in which people paste them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocks.packages.package_lists import parse_package_list, parse_packages_within

FREEZE = """\
torch==2.7.1+cu126
Flash_Attn==2.8.2 ; python_version > "3.8"  # comment
transformers @ file:///tmp/transformers-4.55.2-py3-none-any.whl#sha256=ab
vllm @ https://host/vllm-0.10.2%2Bcu126-cp38-abi3-manylinux1_x86_64.whl
-e git+https://github.com/x/editable@abc#egg=editable
local @ file:///home/me/local
uvicorn[standard]==0.30.1
numpy===2.1.0
odd==not-a-version
"""
COLUMNS = """\
Package            Version        Editable project location
------------------ -------------- -------------------------
torch              2.7.1+cu126
slipway            0.1.0          /home/me/slipway
nvidia-nccl-cu12   2.26.2
"""
JSON = '[{"name": "torch", "version": "2.7.1"}, {"name": "Numpy", "version": "2.1", "editable_project_location": "/x"}, 3]'
CONDA = """\
# packages in environment at /opt/conda:
#
# Name                    Version                   Build  Channel
_libgcc_mutex             0.1                        main
pytorch                   2.5.1           py3.12_cuda12.4_cudnn9.1.0_0    pytorch
pytorch-cuda              12.4                 hc786d27_7    pytorch
numpy                     2.1.0                    pypi_0    pypi
"""
CONDA_JSON = '[{"name": "pytorch", "version": "2.5.1", "build_string": "py3.12_cpu_0", "channel": "pytorch"}]'
COLLECTED = """\
PyTorch version: 2.4.0+cu121
[pip3] numpy==1.26.4
[pip3] torch==2.4.0+cu121
[conda] numpy                     1.26.4                   pypi_0    pypi
vLLM Version: 0.6.3
"""


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            FREEZE,
            {
                "torch": "2.7.1+cu126",
                "flash-attn": "2.8.2",
                "transformers": "4.55.2",
                "vllm": "0.10.2+cu126",
                "uvicorn": "0.30.1",
                "numpy": "2.1.0",
            },
        ),
        (COLUMNS, {"torch": "2.7.1+cu126", "slipway": "0.1.0", "nvidia-nccl-cu12": "2.26.2"}),
        (JSON, {"torch": "2.7.1", "numpy": "2.1"}),
        (CONDA, {"torch": "2.5.1+cu124", "cuda-version": "12.4", "numpy": "2.1.0"}),
        (CONDA_JSON, {"torch": "2.5.1+cpu"}),
        (COLLECTED, {"numpy": "1.26.4", "torch": "2.4.0+cu121"}),
        ("torch (2.0.1)\nfoo (1.2, /home/me/foo)\n", {"torch": "2.0.1", "foo": "1.2"}),
        ("", {}),
        ("[{]", {}),
        ("[" * 100_000, {}),
    ],
)
def test_versions_by_name(text: str, wanted: dict[str, str]) -> None:
    found = parse_package_list(text)
    found.pop("libgcc-mutex", None)
    assert found == wanted


def test_packages_within_a_report() -> None:
    text = f"I use Ubuntu 22.04 and python 3.12\n{COLLECTED}\n$ pip list\n{COLUMNS}\nThanks 4.2\nvllm==0.10.2"
    assert parse_packages_within(text) == {
        "numpy": "1.26.4",
        "torch": "2.7.1+cu126",
        "slipway": "0.1.0",
        "nvidia-nccl-cu12": "2.26.2",
        "vllm": "0.10.2",
    }


@given(
    st.text(max_size=200) | st.lists(st.sampled_from((FREEZE + COLUMNS + CONDA).splitlines())).map("\n".join)
)
def test_any_text_is_read(text: str) -> None:
    parse_package_list(text)
    parse_packages_within(text)
