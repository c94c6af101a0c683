"""Matrix products of consecutive groups of rows, each with a matrix of its own.

    y_m = W_g x_m        for ends_{g-1} <= m < ends_g

The sizes of the groups are on the device alone: no kernel waits for them, and no shape depends on
them, so that everything can be recorded in a CUDA graph. Products and gradients are deterministic.

| kernel    | implementation                                                        | where        |
|-----------|-----------------------------------------------------------------------|--------------|
| `plain`   | the definition: every row times every matrix, then a selection        | anywhere     |
| `grouped` | torch's grouped_mm: all groups in one launch                          | Hopper in    |
|           |                                                                       | bfloat16, CPU|
| `blocked` | blocks of rows of one group, padded, in one batched product: at most  | anywhere     |
|           | 1.5 times the arithmetic, and 3 copies of the matrices                |              |

`auto` is `grouped` where it runs, else `blocked`. torch's grouped_mm needs rows whose size is a
multiple of 16 bytes. On GPUs before Hopper it copies the sizes to the host, and on Blackwell it
leaves the gradient of an empty group's matrix undefined (pytorch issue 172439).

Shapes: M rows, G groups, D width of a row, F width of a product, L blocks, R rows per block.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm

Kernel = Literal["auto", "plain", "grouped", "blocked"]

_CPU_DTYPES = {torch.float32, torch.bfloat16, torch.float16}  # when compiled, bfloat16 alone


def resolve(kernel: Kernel, device: torch.device, dtype: torch.dtype, *widths: int) -> Kernel:
    """Return the kernel that runs: `auto` by the rule above, any other as named.

    `widths` are D and F.

    Raises:
        ValueError: `grouped` was named and cannot run; the message says why.
    """
    if kernel not in ("auto", "grouped"):
        return kernel
    reason = _not_grouped_because(device, dtype, widths)
    if kernel == "auto":
        return "blocked" if reason else "grouped"
    if reason:
        raise ValueError(f"kernel 'grouped' cannot run here: {reason}. 'blocked' runs anywhere")
    return kernel


def grouped_matmul(x_MD: Tensor, weight_GFD: Tensor, ends_G: Tensor, kernel: Kernel) -> Tensor:
    """Return `y_MF`. `ends_G`, int32, are the rows at which the groups end; the last is M."""
    chosen = resolve(kernel, x_MD.device, x_MD.dtype, *weight_GFD.shape[1:])
    form = {"plain": definition, "grouped": _grouped, "blocked": _blocked}[chosen]
    return form(x_MD, weight_GFD, ends_G.contiguous())  # torch's kernel ignores strides


def definition(x_MD: Tensor, weight_GFD: Tensor, ends_G: Tensor) -> Tensor:
    """Return `y_MF` by the definition."""
    y_GMF = x_MD @ weight_GFD.mT
    return y_GMF[_group_of_row(ends_G, len(x_MD)), torch.arange(len(x_MD), device=x_MD.device)]


def _grouped(x_MD: Tensor, weight_GFD: Tensor, ends_G: Tensor) -> Tensor:
    return grouped_mm(x_MD, weight_GFD.mT, offs=ends_G)


def _blocked(x_MD: Tensor, weight_GFD: Tensor, ends_G: Tensor) -> Tensor:
    rows, groups = len(x_MD), len(ends_G)
    size = max(1, -(-rows // (2 * groups)))
    blocks = (rows + groups * (size - 1)) // size  # enough for every distribution of the rows
    sizes_G = ends_G.diff(prepend=ends_G.new_zeros(1))
    blocks_G = (sizes_G + size - 1) // size
    last_G = blocks_G.cumsum(0)
    group_M = _group_of_row(ends_G, rows)
    padding_G = (last_G - blocks_G) * size - (ends_G - sizes_G)  # padding rows before a group
    place_M = torch.arange(rows, device=x_MD.device) + padding_G[group_M]

    x_LRD = x_MD.new_zeros(blocks * size, x_MD.shape[1]).index_copy(0, place_M, x_MD)
    x_LRD = x_LRD.unflatten(0, (blocks, size))
    group_L = _group_of_row(last_G, blocks).clamp(max=groups - 1)  # unused blocks are zeros
    y_LRF = x_LRD @ weight_GFD[group_L].mT
    return y_LRF.flatten(0, 1)[place_M]


def _group_of_row(ends_G: Tensor, rows: int) -> Tensor:
    row_M = torch.arange(rows, dtype=ends_G.dtype, device=ends_G.device)
    return torch.searchsorted(ends_G, row_M, right=True)


def _not_grouped_because(
    device: torch.device, dtype: torch.dtype, widths: tuple[int, ...]
) -> str | None:
    if any(width * dtype.itemsize % 16 for width in widths):
        given = " and ".join(map(str, widths))
        return f"rows of {dtype} must be multiples of 16 bytes, and their widths are {given}"
    if device.type == "cpu":
        supported = {torch.bfloat16} if torch.compiler.is_compiling() else _CPU_DTYPES
        return None if dtype in supported else f"torch's grouped_mm does not support {dtype}"
    if device.type != "cuda" or torch.cuda.get_device_properties(device).major != 9:
        return f"it needs a GPU of the Hopper family or a CPU, and the device is {device}"
    return None if dtype == torch.bfloat16 else f"on CUDA it needs bfloat16, not {dtype}"
