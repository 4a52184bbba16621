"""What the benchmarks share: the real data beside the repository, clocks, and pools larger than the real one."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Context, Model

REPOSITORY = Path(__file__).resolve().parents[1]
DATA = REPOSITORY.parent / "shared" / "data"
shown: list[str] = []  # names of the rows so far


def real_vectors() -> np.ndarray:
    """10,000 MPNet vectors of DiffusionDB prompts, (10000, 768) float16."""
    path = DATA / "diffusiondb_prompts_10k.mpnet.float16.npy"
    if not path.exists():
        sys.exit("this benchmark needs the real vectors, which are not beside the repository")
    return np.load(path)


def made_vectors(count: int, width: int = 32) -> np.ndarray:
    """Random unit vectors around 20 centres, (count, width) float16: for tiny sizes, where the real ones are not needed."""
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, width))[rng.integers(20, size=count)] + 0.5 * rng.normal(size=(count, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def larger_pool(path: Path, count: int, vectors: np.ndarray, seed: int = 0) -> None:
    """Write vectors made of given ones (n, d), the real ones: each between a real one and one of its 50 nearest, plus noise.

    The noise has the local spread of those neighbours and a small part in all directions, so that similarities to the
    nearest stay plausible (median .83 to the nearest among 200,000, where the real 10,000 have .73).
    """
    import faiss

    from irpipe.schemas.embeddings import save_vectors

    real = vectors.astype(np.float32)
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    near = faiss.knn(real, real, 51, metric=faiss.METRIC_INNER_PRODUCT)[1][:, 1:]
    rng = np.random.default_rng(seed)

    def blocks() -> Any:
        for start in range(0, count, 20_000):
            size = min(20_000, count - start)
            row = rng.integers(len(real), size=size)
            other = near[row, rng.integers(50, size=size)]
            points = real[row] + rng.uniform(0, 0.5, (size, 1)).astype(np.float32) * (real[other] - real[row])
            for _ in range(4):  # a random direction within the neighbourhood
                one, two = (near[row, rng.integers(50, size=size)] for _ in range(2))
                points += rng.normal(0, 0.3, (size, 1)).astype(np.float32) * (real[one] - real[two])
            points += rng.normal(0, 0.3 / np.sqrt(real.shape[1]), points.shape).astype(np.float32)
            yield points / np.linalg.norm(points, axis=1, keepdims=True)

    save_vectors(path, blocks(), (count, real.shape[1]))


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of wall time, and what the work returned."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def peak_in_child(work: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What some work returned in a process of its own, and that process's largest memory in GB."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_child, args=(theirs, work, arguments))
    process.start()
    theirs.close()  # else nobody would notice that the process died
    try:
        result, peak = ours.recv()
    except EOFError:
        raise RuntimeError("the measured process failed; what it said stands above") from None
    finally:
        process.join()
    return result, peak


def _child(pipe: Any, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    result = work(*arguments)
    pipe.send((result, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6))


def least_seconds(work: Callable[[], Any], rounds: int, device: str) -> float:
    """The shortest wall time of some work; on a GPU after one round that warms it up, and until the GPU has done it."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None

    def whole() -> None:
        work()
        wait()

    if device == "cuda":
        whole()
        torch.cuda.reset_peak_memory_stats()
    return min(timed(whole)[0] for _ in range(rounds))


def gpu_peak(device: str) -> dict[str, str]:
    """The GPU's peak memory since it was measured last, to show beside a time; nothing on a CPU."""
    import torch

    return {"peak_gb": f"{torch.cuda.max_memory_allocated() / 1e9:.1f}"} if device == "cuda" else {}


def quiet_context(
    work: Path, sources: dict[str, tuple[Path, ...]] | None = None, models: dict[str, tuple[Model, ...]] | None = None
) -> Context:
    """A run's surroundings without anybody watching."""
    work.mkdir(parents=True, exist_ok=True)
    return Context(work, Watcher().progress, lambda text: None, sources or {}, models or {})


def show(name: str, **figures: Any) -> None:
    """One line of results."""
    shown.append(name)
    print(f"{name:<34}", "  ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
