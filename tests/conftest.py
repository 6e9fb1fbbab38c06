"""What all tests share: no network, few threads, and the checkpoints in fixtures/."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

# Before any library is imported: a test that would reach for the network fails instead.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# pytest-xdist runs a process a core: more threads than that only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Whoever runs the tests in the background of a shell hands down an ignored Ctrl-C, and the tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """The folder that fixtures/make.py filled; read only, see `fixture_copy`."""
    return ROOT / "fixtures"


@pytest.fixture
def fixture_copy(fixtures: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Copies one of the fixtures into the test's own folder, to be broken there."""

    def copy(name: str) -> Path:
        place = tmp_path / name
        if (fixtures / name).is_dir():
            shutil.copytree(fixtures / name, place)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(fixtures / name, place)
        return place

    return copy
