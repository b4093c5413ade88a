"""What several test modules share."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # small tensors: a second thread costs more than it gives

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[None, Any, Any]:
    """Where the real data lies beside the checkout, a test that needs it must not be skipped."""
    report = yield
    if report.skipped and "shared_data" in getattr(item, "fixturenames", ()) and SHARED_DATA.is_dir():
        report.outcome, report.longrepr = (
            "failed",
            f"the real data is there, and this test was skipped: {report.longrepr}",
        )
    return report


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real slides and CT series that lies beside the checkout where somebody has put it."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no real data: the folder {SHARED_DATA.name} is not beside the checkout")
    return SHARED_DATA
