"""The machine that a run happens on: which device, how many threads, which versions. Loads torch only when called."""

from __future__ import annotations

import os
import platform
import re
from importlib import metadata

from purify_cli.errors import UsageError
from purify_cli.results import Environment


def resolve_device(name: str) -> str:
    """A torch device for `auto`, `cpu`, `cuda` or `cuda:N`; `auto` takes the first GPU there is.

    Raises:
        UsageError: none of these, or a GPU that is not there.
    """
    if name == "cpu":
        return "cpu"
    if name != "auto" and not re.fullmatch(r"cuda(:\d{1,4})?", name):
        raise UsageError("--device", f"{name!r} is no device", "Choose auto, cpu, cuda or cuda:N")
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return "cuda" if count else "cpu"
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        there = "there is none" if not count else f"there are {count}, counted from 0"
        raise UsageError("--device", f"{name!r} needs a GPU that torch can use, and {there}", "Choose cpu, or auto")
    return name


def set_threads(threads: int) -> None:
    """Sets how many CPU threads torch may use in this process."""
    import torch

    torch.set_num_threads(threads)


def prepare(*, device: str, threads: int | None) -> str:
    """Sets this whole process, which must be ours alone, up for results that repeat; returns the resolved device.

    Raises:
        UsageError: see `resolve_device`.
    """
    # Read when the GPU is first used: without it, cuBLAS may pick another algorithm each run.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    resolved = resolve_device(device)
    import torch

    if threads is not None:
        set_threads(threads)
    # Only a warning where an operation has no deterministic form: a result is better than none.
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010 -- its type stubs do not know it
    torch.backends.cudnn.benchmark = False
    return resolved


def describe(device: str, seed: int) -> Environment:
    """The `environment` of a report."""
    import torch

    return Environment(
        python=platform.python_version(),
        torch=str(torch.__version__),
        transformers=_version("transformers"),
        device=device,
        threads=torch.get_num_threads(),
        seed=seed,
    )


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
