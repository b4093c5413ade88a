"""The time split says what the work waited for, and which setting to change."""

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline import timing
from pipeline.timing import Times, total, verdict

FASTER_MODEL = "Faster: a GPU, backbone.precision bf16 there, a smaller backbone"
FASTER_RESULTS = "for stores to be written. Faster: results on a faster disk"
LOCAL_RAW = "for files to be read. Faster: raw files on a local disk"
MORE_THREADS = (
    "for tiles to be decoded. Faster: more threads for the rule embed (--set-threads embed=16), or fewer jobs beside it"
)


@pytest.mark.parametrize(
    ("times", "said"),
    [
        (Times(read=50, decode=90, wait=1, copy=9, forward=90), f"compute-bound: STILL 1% of the time. {FASTER_MODEL}"),
        (Times(decode=99, wait=9.4, forward=90.6), f"compute-bound: STILL 9% of the time. {FASTER_MODEL}"),
        (Times(decode=99, wait=10, forward=90), f"reader-bound: STILL 10% of the time, {MORE_THREADS}"),
        (Times(read=21, decode=80, wait=75, forward=25), f"reader-bound: STILL 75% of the time, {MORE_THREADS}"),
        (Times(open=2, read=80, decode=20, wait=50, forward=50), f"disk-bound: STILL 50% of the time, {LOCAL_RAW}"),
        (Times(open=60, read=5, decode=50, wait=50, forward=50), f"disk-bound: STILL 50% of the time, {LOCAL_RAW}"),
        (Times(decode=20, wait=50, forward=50, write=80), f"disk-bound: STILL 50% of the time, {FASTER_RESULTS}"),
        (Times(decode=20, wait=5, forward=95, write=800), f"compute-bound: STILL 5% of the time. {FASTER_MODEL}"),
        (Times(open=5, decode=7, write=1), "nothing was embedded"),
    ],
)  # fmt: skip
def test_the_verdict_names_what_the_model_waited_for_and_what_to_change(times: Times, said: str) -> None:
    assert verdict(times) == said.replace("STILL", "the model stood still for")


def test_copies_to_the_device_are_work_of_the_model() -> None:
    """Of 100 s, 95 s were copies: nothing stood still."""
    assert verdict(Times(decode=99, wait=5, copy=90, forward=5)).startswith(
        "compute-bound: the model stood still for 5%"
    )


def test_the_total_is_the_sum_over_images_by_what_was_done() -> None:
    rows = [Times(1, 2, 3, 4, 5, 6, 7).rounded(), Times(10, 20, 30, 40, 50, 60, 70).rounded(), {"read": 0.5}]
    assert total(rows) == Times(open=11, read=22.5, decode=33, wait=44, copy=55, forward=66, write=77)
    assert total([]) == Times()


def test_seconds_are_rounded_to_milliseconds() -> None:
    assert Times(open=0.0004, read=1.23456).rounded() == {
        "open": 0.0,
        "read": 1.235,
        "decode": 0.0,
        "wait": 0.0,
        "copy": 0.0,
        "forward": 0.0,
        "write": 0.0,
    }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """What the clock says next."""
    readings: list[float] = []
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: readings.pop(0)))
    yield readings
    assert readings == []


def test_seconds_of_several_blocks_add_up_also_when_one_fails(clock: list[float]) -> None:
    clock += [10, 12.5, 100, 104]
    times = Times(write=1)
    with times.spent_on("write"):
        pass
    with pytest.raises(KeyError), times.spent_on("write"):
        raise KeyError
    assert times == Times(write=1 + 2.5 + 4)
