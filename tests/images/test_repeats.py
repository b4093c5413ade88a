"""Several slices at one position: duplicates, and volumes of one place."""

import pytest

from pipeline.images.repeats import in_order


def values(volume) -> list[int]:
    """The HU of each slice's first pixel."""
    return volume[:, 0, 0].tolist()


# Duplicates


def test_equal_duplicates_are_counted_and_left_out(write_slice, read_series):
    for name, z in [("a", 0), ("b", 1), ("c", 1), ("d", 2), ("e", 1)]:
        write_slice(name, z=z, value=z)
    volume, properties = read_series()
    assert values(volume) == [0, 1, 2]
    assert (properties["qc"]["duplicates"], properties["qc"]["n_files"], properties["qc"]["n_read"]) == (2, 5, 3)
    assert "equal duplicates left out: 2" in properties["notes"]


def test_a_series_that_is_there_twice_is_read_once(write_slice, read_series):
    """Whatever differs in the headers of the copies."""
    for copy in range(2):
        for z in range(3):
            elements = {"AcquisitionNumber": copy, "ContentTime": f"1{copy}0000", "InstanceNumber": 10 * copy + z}
            write_slice(f"{copy}{z}", z=z, value=z, **elements)
    volume, properties = read_series()
    assert values(volume) == [0, 1, 2]
    assert (properties["qc"]["duplicates"], properties["qc"]["other_volumes"]) == (3, 0)


def test_slices_closer_than_a_hundredth_of_a_millimetre_are_at_one_position(write_slice, read_series):
    for name, z in [("a", 0), ("b", 1), ("c", 1.009), ("d", 2)]:
        write_slice(name, z=z, value=int(z))
    volume, properties = read_series()
    assert values(volume) == [0, 1, 2] and properties["z_mm"] == [0, 1, 2]


def test_duplicates_among_volumes_of_one_place_are_left_out_first(write_slice, read_series):
    """A series of two phases that was exported twice."""
    for copy in range(2):
        for phase in (1, 2):
            for z in range(3):
                write_slice(f"{copy}{phase}{z}", z=z, value=100 * phase + z, AcquisitionNumber=phase)
    volume, properties = read_series(repeats="last")
    assert values(volume) == [200, 201, 202]
    assert (properties["qc"]["duplicates"], properties["qc"]["other_volumes"]) == (6, 1)


@pytest.mark.parametrize(
    "elements", [{"value": 7}, {"RescaleIntercept": 5}, {"RescaleSlope": 2}, {"PixelPaddingValue": 1}]
)
def test_what_differs_in_value_or_meaning_is_no_duplicate(write_slice, refusal, elements):
    for name, z in [("a", 0), ("b", 1), ("d", 2)]:
        write_slice(name, z=z, value=1)
    write_slice("c", **({"z": 1, "value": 1} | elements))
    assert refusal() == (
        "2 different slices lie at the position of slice 2 of 3 (positions with such: 1): keep one phase only"
    )


def test_a_duplicate_that_is_truncated_is_told_by_its_place(write_slice, refusal):
    for name, z in [("a", 0), ("b", 1), ("c", 1)]:
        path = write_slice(name, z=z)
    path.write_bytes(path.read_bytes()[:-1])
    assert refusal().startswith("slice 2 of 2: pixels in Explicit VR Little Endian are truncated or damaged")


# Volumes of one place


@pytest.fixture
def write_volumes(write_slice):
    """Writes slices at 0, 1 and 2 mm for each value of an element: 100 in the first volume, 200 in the next."""

    def write(element, stated, **others):
        for volume, value in enumerate(stated):
            for z in range(3):
                write_slice(f"{z}-{volume}", z=z, value=100 * (volume + 1) + z, **{element: value}, **others)

    return write


PHASES = [
    ("AcquisitionNumber", [2, 10, 1]),
    ("TemporalPositionIdentifier", [2, 10, 1]),
    ("TemporalPositionIndex", [2, 10, 1]),
    ("TemporalPositionIndex", [32, 256, 1]),
    ("TemporalPositionIndex", [48, 300, 9]),
    ("ContentTime", ["101500.5", "101501", "095900"]),
    ("AcquisitionTime", ["101500", "101500.25", "095900"]),
    ("TriggerTime", [0.5, 99.5, 0.25]),
    ("NominalPercentageOfCardiacPhase", [30.0, 75.0, 5.0]),
]
"""Elements, and their values in three volumes: the third comes first, the second last."""


@pytest.mark.parametrize(("element", "stated"), PHASES)
@pytest.mark.parametrize(("which", "expected"), [("first", [300, 301, 302]), ("last", [200, 201, 202])])
def test_the_first_or_the_last_of_several_volumes_is_read(write_volumes, read_series, element, stated, which, expected):
    """In the order of numbers and times, not of letters: 2 comes before 10."""
    write_volumes(element, stated)
    volume, properties = read_series(repeats=which)
    assert values(volume) == expected
    assert (properties["qc"]["other_volumes"], properties["qc"]["duplicates"]) == (2, 0)
    assert "other volumes of the same place left out: 2" in properties["notes"]


def test_several_volumes_are_refused_unless_told_which(write_volumes, refusal):
    write_volumes("AcquisitionNumber", [1, 2])
    assert refusal() == (
        "2 volumes of 3 slices lie at one place, such as phases: set series.repeats to first or last, or keep one of "
        "them"
    )


def test_the_most_telling_element_divides(write_slice, read_series):
    """The content time differs for every slice, the temporal position for every volume."""
    for number in range(6):
        volume, z = divmod(number, 3)
        write_slice(
            f"{number}",
            z=z,
            value=number,
            TemporalPositionIdentifier=2 - volume,
            ContentTime=f"1015{number:02d}",
            AcquisitionNumber=5,
        )
    volume, _ = read_series(repeats="first")
    assert values(volume) == [3, 4, 5]


def test_acquisition_numbers_that_differ_within_a_stack_do_not_divide_it(write_slice, read_series):
    for z in range(4):
        write_slice(f"{z}", z=z, value=z, AcquisitionNumber=z)
    volume, properties = read_series()
    assert values(volume) == [0, 1, 2, 3] and properties["qc"]["other_volumes"] == 0


def test_a_volume_may_lack_slices_that_another_has(write_slice, read_series):
    for number, places in [(1, range(20)), (2, [*range(10), *range(11, 20)])]:
        for z in places:
            write_slice(f"{number}-{z}", z=z, value=100 * number + z, AcquisitionNumber=number)
    assert values(read_series(repeats="first")[0]) == list(range(100, 120))
    volume, properties = read_series(repeats="last")
    assert values(volume) == [*range(200, 210), *range(211, 220)]
    assert "1 slice is missing (a gap of 2 mm where 1 mm are usual)" in properties["notes"]


def test_blocks_that_overlap_are_no_repeats_of_which_one_could_be_read(write_slice, refusal):
    """To read the first would lose the other half of the body."""
    for number, places in [(1, range(12)), (2, range(10, 22))]:
        for z in places:
            write_slice(f"{number}-{z}", z=z, value=100 * number + z, AcquisitionNumber=number)
    said = "2 different slices lie at the position of slice 11 of 22 (positions with such: 2): keep one phase only"
    assert refusal(repeats="first") == said


@pytest.mark.parametrize(
    "numbers",
    [
        [1, 1, 1, 1, 1, 1],  # nothing differs
        [1, 1, 1, 2, 2, None],  # not stated everywhere
        [1, 1, 1, 1, 2, 2],  # two slices of one volume at one place
        [1, 1, 1, 2, 3, 4],  # volumes of one slice
    ],
)
def test_what_does_not_divide_into_whole_volumes_is_refused(write_slice, refusal, numbers):
    for index, number in enumerate(numbers):
        write_slice(f"{index}", z=index % 3, value=index, AcquisitionNumber=number)
    assert refusal(repeats="first") == (
        "2 different slices lie at the position of slice 1 of 3 (positions with such: 3): keep one phase only"
    )


def test_few_slices_in_each_of_many_volumes_are_too_few(write_volumes, refusal):
    """Nine slices in the series, and three in what would be read."""
    write_volumes("AcquisitionNumber", [1, 2, 3])
    assert refusal(repeats="first", min_slices=4).startswith("3 slices, fewer than min_slices 4: ")


def test_two_temporal_positions_of_a_multi_frame_file_are_two_volumes(write_frames, read_series, refusal):
    frames = [
        {"z": 5.0 * z, "value": 100 * time + z, "TemporalPositionIndex": time} for z in (2, 0, 1) for time in (2, 1)
    ]
    write_frames("a", frames)
    assert refusal().startswith("2 volumes of 3 slices lie at one place")
    assert values(read_series(repeats="first")[0]) == [100, 101, 102]
    volume, properties = read_series(repeats="last")
    assert values(volume) == [200, 201, 202]
    assert properties["instance_number"] == [3, 5, 1]


def test_phases_of_a_multi_frame_file_by_their_frames_acquisition_numbers(write_frames, read_series):
    frames = [{"z": z, "value": number, "FrameAcquisitionNumber": number} for number in (300, 48) for z in range(3)]
    write_frames("a", frames)
    assert values(read_series(repeats="first")[0]) == [48, 48, 48]


def test_words_come_behind_numbers():
    assert sorted(["b", "10", "2", "a", "-1"], key=in_order) == ["-1", "2", "10", "a", "b"]
