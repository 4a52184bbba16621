"""Rows that the processes of a training share out: each computes some, and all get all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor


def shared_rows(
    accelerator: Accelerator,
    count: int,
    batch_size: int,
    compute: Callable[[Sequence[int]], Sequence[Tensor]],
    done: Callable[[int], None] = lambda _count: None,
) -> list[Tensor]:
    """Compute rows 0, 1, ..., `batch_size` at a time in every process, and give all of them to all processes.

    Args:
        count: rows in all, at least 1.
        compute: from row numbers (n,) to tensors (n, ...) on any device. A row must not depend on its batch.
        done: is told how many rows are new.

    Returns:
        for each tensor of `compute`, the rows of all processes, (count, ...), on the CPU: the same bits in every process.
    """
    processes, parts = accelerator.num_processes, []
    for start in range(0, count, batch_size * processes):
        numbers = range(start, min(count, start + batch_size * processes))
        each = -(-len(numbers) // processes)
        # Every process computes as many, since they are gathered as equal shapes: the last row is computed more than once.
        first = each * accelerator.process_index
        mine = [numbers[min(position, len(numbers) - 1)] for position in range(first, first + each)]
        computed = compute(mine)
        if processes > 1:
            computed = accelerator.gather(tuple(rows.to(accelerator.device) for rows in computed))
        parts.append([rows[: len(numbers)].cpu() for rows in computed])
        done(len(numbers))
    return [torch.cat(rows) for rows in zip(*parts, strict=True)]
