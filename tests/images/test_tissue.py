"""What is tissue, how much of a tile, and the tiles that the presets keep."""

from collections import deque

import numpy as np
import pytest

from pipeline.image_settings import SlideSettings, TissueSettings
from pipeline.images import segmenter
from pipeline.images.tissue import Tissue, interpolate, keeps, large_pieces, otsu, segment

WHITE, PINK, PALE = (255, 255, 255), (200, 80, 140), (250, 240, 245)


def mask_of(text: str) -> np.ndarray:
    """A mask drawn with # for tissue."""
    return np.array([[letter == "#" for letter in line] for line in text.split()])


def slide_picture(shape: tuple[int, int], *rectangles: tuple[int, int, int, int, tuple[int, int, int]]) -> np.ndarray:
    """A white picture with rectangles: left, top, right, bottom, colour."""
    picture = np.full((*shape, 3), WHITE, dtype=np.uint8)
    for left, top, right, bottom, colour in rectangles:
        picture[top:bottom, left:right] = colour
    return picture


def tissue_of(
    picture: np.ndarray,
    unreadable: tuple[slice, slice] | None = None,
    area: float = 1.0,
    l0: float = 1.0,
    **settings: object,
) -> Tissue:
    readable = np.ones(picture.shape[:2], dtype=bool)
    if unreadable:
        readable[unreadable] = False
    return segment(picture, readable, TissueSettings(**settings), area, l0)


def squares(side: float, *origins: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    near = np.array(origins, dtype=float)
    return near, near + side


# Shares and points


def test_share_counts_parts_of_pixels():
    tissue = Tissue(mask_of("#. .#"))
    near = np.array([[0, 0], [0.5, 0.5], [0.25, 0], [1, 0], [0, 0.5]], dtype=float)
    far = np.array([[2, 2], [1.5, 1.5], [1.25, 1], [2, 1], [2, 1]], dtype=float)
    assert tissue.share(near, far).tolist() == [0.5, 0.5, 0.75, 0.0, 0.5]
    assert tissue.share(near, far).dtype == np.float32


def test_share_of_any_rectangle_is_the_sum_of_its_overlaps():
    generator = np.random.default_rng(0)
    mask = generator.random((7, 9)) < 0.5
    near = generator.uniform(-3, 6, (50, 2))
    far = near + generator.uniform(0.1, 6, (50, 2))

    def overlap(low: float, high: float, length: int) -> np.ndarray:
        edges = np.arange(length)
        return np.clip(np.minimum(high, edges + 1) - np.maximum(low, edges), 0, None)

    wanted = [
        overlap(y0, y1, 7) @ mask @ overlap(x0, x1, 9) / ((x1 - x0) * (y1 - y0))
        for (x0, y0), (x1, y1) in zip(near, far, strict=True)
    ]
    assert Tissue(mask).share(near, far) == pytest.approx(wanted, abs=1e-6)


def test_beyond_the_mask_there_is_no_tissue():
    tissue = Tissue(np.ones((4, 4), dtype=bool))
    near, far = squares(2, (3, 1), (3, 3), (4, 4), (-1, 0), (100, 100))
    assert tissue.share(near, far).tolist() == [0.5, 0.25, 0.0, 0.5, 0.0]


def test_where_no_tissue_is_the_share_is_exactly_zero():
    """So that `share > 0` keeps no tile for an error of rounding; sums to 9 million are not exact to the last digit."""
    mask = np.ones((3000, 3000), dtype=bool)
    mask[:, 2901:] = False
    x = 2901 + np.arange(300) * 0.1234567
    near = np.column_stack([x, 2000 + x / 7])
    assert (Tissue(mask).share(near, near + 2.3) == 0).all()
    assert (Tissue(mask).share(near - (1, 0), near + 2.3)[:8] > 0).all()


def test_points_have_the_value_of_the_pixel_they_lie_in():
    tissue = Tissue(mask_of("#.# ..."))
    places = np.array([[0, 0], [0.99, 0.99], [1, 0], [2.5, 0.5], [3, 0], [-0.1, 0], [0, 1], [0, -5]], dtype=float)
    assert tissue.points(places).tolist() == [True, True, False, True, False, False, False, False]


# Outlines


def test_outlines_are_the_border_pixels_a_piece_first_then_its_holes():
    tissue = Tissue(mask_of("#.... ..... .###. .#.#. .###. ....."))
    rings = tissue.outline()
    assert rings.dtype == np.int32
    by_ring = [sorted(map(tuple, rings[rings[:, 0] == number, 1:].tolist())) for number in range(3)]
    assert by_ring == [[(0, 0)], [(1, 2), (1, 4), (3, 2), (3, 4)], [(1, 3), (2, 2), (2, 4), (3, 3)]]
    assert rings[:, 0].tolist() == sorted(rings[:, 0].tolist())


def test_no_tissue_has_an_empty_outline():
    assert Tissue(np.zeros((5, 5), dtype=bool)).outline().shape == (0, 3)


def test_an_outline_of_a_hundred_thousand_holes_is_not_slow():
    """OpenCV's own order of holes takes a time that grows with the square of their number: minutes for these."""
    mask = np.ones((1400, 1400), dtype=bool)
    mask[2:-2:4, 2:-2:4] = False
    rings = Tissue(mask).outline()
    assert rings[-1, 0] == 349 * 349 and len(rings) == 4 + 4 * 349 * 349


# Methods


def test_otsu_divides_two_groups_and_not_one():
    assert otsu(np.array([1, 2, 1, 2, 200, 201], dtype=np.uint8)) == 2
    assert otsu(np.array([7, 7, 7], dtype=np.uint8)) == 0
    assert otsu(np.array([], dtype=np.uint8)) == 0


def test_interpolation_of_an_integral_image_counts_parts_of_pixels():
    integral = np.array([[0, 0, 0], [0, 1, 1], [0, 1, 2]], dtype=float)  # of [[1, 0], [0, 1]]
    x, y = np.array([0.5, 1.5, 2.0]), np.array([0.5, 1.5, 2.0])
    assert interpolate(integral, x, y).tolist() == [0.25, 1.25, 2.0]


@pytest.mark.parametrize("method", ["otsu", "clam"])
def test_saturated_pixels_are_tissue(method):
    picture = slide_picture((40, 40), (10, 10, 30, 30, PINK))
    mask = tissue_of(picture, method=method, median=1, close=0).mask
    assert mask[10:30, 10:30].all() and mask.sum() == 400


@pytest.mark.parametrize("method", ["otsu", "clam"])
def test_white_with_noise_is_no_tissue(method):
    noise = np.random.default_rng(0).integers(0, 5, (64, 64, 3))
    assert not tissue_of((255 - noise).astype(np.uint8), method=method).mask.any()


def test_clam_takes_what_is_above_the_threshold():
    """Saturation is 255 * (largest - smallest channel) / largest: 10 of 250 gives 10.2, stored as 10."""
    picture = slide_picture((10, 10), (0, 0, 5, 10, (250, 240, 245)))
    assert tissue_of(picture, method="clam", threshold=9, median=1, close=0).mask.sum() == 50
    assert tissue_of(picture, method="clam", threshold=10, median=1, close=0).mask.sum() == 0


def test_clam_blurs_away_specks_before_the_threshold():
    picture = slide_picture((20, 20), (2, 2, 3, 3, PINK), (10, 10, 15, 15, PINK))
    mask = tissue_of(picture, method="clam", threshold=15, median=3, close=0).mask
    # The median of 3 x 3 drops the speck and the four corners of the square.
    assert mask.sum() == 21 and mask[11:14, 10:15].all() and not mask[2, 2]


def test_clam_closes_gaps():
    picture = slide_picture((20, 20), (2, 2, 6, 10, PINK), (8, 2, 12, 10, PINK))
    apart = tissue_of(picture, method="clam", threshold=15, median=1, close=0).mask
    closed = tissue_of(picture, method="clam", threshold=15, median=1, close=3).mask
    assert not apart[2:10, 6:8].any() and closed.sum() == 10 * 8 and closed[2:10, 2:12].all()


def test_brightness_takes_what_is_darker_to_the_eye():
    """0.299 red + 0.587 green + 0.114 blue: yellow of 239.6 is 240, of 238.5 is 238."""
    picture = slide_picture((4, 4), (0, 0, 1, 4, (255, 255, 120)), (1, 0, 2, 4, (255, 255, 110)))
    mask = tissue_of(picture, method="brightness", brightness=240).mask
    assert mask.tolist() == [[False, True, False, False]] * 4


def test_where_there_is_no_glass_stroma_is_tissue_too():
    """Otsu's threshold divides nuclei from stroma there; both are far more saturated than glass."""
    stroma, nuclei = (225, 170, 205), (90, 60, 140)
    picture = slide_picture((20, 20), (0, 0, 20, 20, stroma), (5, 5, 15, 15, nuclei))
    assert tissue_of(picture, method="otsu").mask.all()
    with_glass = slide_picture((20, 20), (0, 0, 10, 20, stroma), (2, 2, 6, 6, nuclei))
    assert tissue_of(with_glass, method="otsu").mask.tolist() == [[True] * 10 + [False] * 10] * 20


def test_none_takes_all():
    assert tissue_of(slide_picture((4, 6)), method="none").mask.all()


def test_a_model_decides_by_its_probability(monkeypatch):
    seen = []

    def predict(picture: np.ndarray, path: object) -> np.ndarray:
        seen.append(str(path))
        return np.array([[0.1, 0.6], [0.7, 0.9]], dtype=np.float32)

    monkeypatch.setattr(segmenter, "predict", predict)
    tissue = tissue_of(slide_picture((2, 2)), method="model", model="own.pt", probability=0.7)
    assert tissue.mask.tolist() == [[False, False], [True, True]]
    assert seen == ["own.pt"]


@pytest.mark.parametrize("method", ["otsu", "clam", "brightness"])
def test_what_cannot_be_decoded_is_tissue_and_changes_nothing_else(method):
    picture = slide_picture((40, 40), (10, 10, 30, 30, PINK))
    whole = tissue_of(picture, method=method, median=1, close=0).mask
    picture[:5] = (255, 0, 0)  # would spoil Otsu's threshold
    mask = tissue_of(picture, (slice(0, 5), slice(None)), method=method, median=1, close=0).mask
    assert mask[:5].all() and np.array_equal(mask[5:], whole[5:])


def test_what_cannot_be_decoded_stays_however_small_it_is():
    picture = slide_picture((40, 40), (10, 10, 30, 30, PINK))
    tissue = tissue_of(picture, (slice(0, 1), slice(0, 1)), method="otsu", min_area=100)
    assert tissue.mask[0, 0] and tissue.mask.sum() == 401


# Pieces and holes

PIECES = mask_of("""
    #####.....##
    #...#.....##
    #.#.#.......
    #...#..#....
    #####.#.....
    ............
""")  # a ring of 16 with a hole of 9, an island of 1 in it; a square of 4; a diagonal of 2


def test_pieces_stay_when_their_pixels_without_holes_are_more():
    ring_and_square = large_pieces(PIECES, 3, 0, -1)
    assert ring_and_square.sum() == 20 and not ring_and_square[2, 2]
    assert large_pieces(PIECES, 4, 0, -1).sum() == 16
    assert large_pieces(PIECES, 16, 0, -1).sum() == 0


def test_pixels_that_touch_at_a_corner_are_one_piece():
    assert large_pieces(PIECES, 1, 0, -1)[4, 6] and not large_pieces(PIECES, 2, 0, -1)[4, 6]


def test_a_hole_does_not_leak_through_a_corner():
    """Where tissue hangs together over a corner, what lies inside of it is a hole."""
    diamond = mask_of(".#. #.# .#.")
    assert large_pieces(diamond, 0, 1, -1).tolist() == mask_of(".#. ### .#.").tolist()


def test_holes_are_filled_with_their_islands_when_they_are_no_larger():
    assert np.array_equal(large_pieces(PIECES, 0, 8, -1), PIECES)
    filled = large_pieces(PIECES, 0, 9, -1)
    assert filled[:5, :5].all() and filled.sum() == PIECES.sum() + 8


def test_a_removed_island_leaves_no_gap_in_a_filled_hole():
    assert large_pieces(PIECES, 4, 9, -1).sum() == 25


def test_a_hole_at_the_edge_of_the_slide_is_none():
    bay = mask_of("#.# #.# ###")
    assert np.array_equal(large_pieces(bay, 0, 100, 0), bay)


HOLES = mask_of("""
    ##########.###
    #.#..#...#.#.#
    ##########.###
""")


@pytest.mark.parametrize(
    ("most", "row"),
    [
        (-1, "#.#..#...#.#.#"),
        (3, "#.#..#...#.#.#"),
        (2, "###..#...#.#.#"),
        (1, "######...#.#.#"),
        (0, "##########.###"),
    ],
)
def test_the_largest_holes_of_each_piece_stay(most, row):
    kept = large_pieces(HOLES, 0, 0, most)
    assert np.array_equal(kept, np.vstack([HOLES[0], mask_of(row)[0], HOLES[2]]))


def test_of_the_largest_holes_the_small_ones_are_filled_too():
    assert large_pieces(HOLES, 0, 2, 2)[1].tolist() == mask_of("######...#.###")[0].tolist()


def reference(mask: np.ndarray, min_area: float, min_hole: float, max_holes: int) -> np.ndarray:
    """The same by flood filling, piece by piece, each looked at alone, as CLAM looks at them."""
    rows, columns = mask.shape

    def flood(start, inside, steps):
        found, todo = {start}, deque([start])
        while todo:
            y, x = todo.popleft()
            for dy, dx in steps:
                at = (y + dy, x + dx)
                if at not in found and -1 <= at[0] <= rows and -1 <= at[1] <= columns and inside(at):
                    found.add(at)
                    todo.append(at)
        return found

    straight = [(0, 1), (1, 0), (0, -1), (-1, 0)]
    around = [*straight, (1, 1), (1, -1), (-1, 1), (-1, -1)]
    result, seen = np.zeros_like(mask), set()
    for start in map(tuple, np.argwhere(mask).tolist()):
        if start in seen:
            continue
        piece = flood(start, lambda at: 0 <= at[0] < rows and 0 <= at[1] < columns and mask[at], around)
        seen |= piece
        if len(piece) <= min_area:
            continue
        outside = flood((-1, -1), lambda at, piece=piece: at not in piece, straight)
        enclosed = {(y, x) for y in range(rows) for x in range(columns)} - outside - piece
        holes = []
        while enclosed:
            holes.append(flood(min(enclosed), lambda at, left=enclosed: at in left, straight))
            enclosed = enclosed - holes[-1]
        holes.sort(key=len, reverse=True)
        kept = {i for i, hole in enumerate(holes) if len(hole) > min_hole and (max_holes < 0 or i < max_holes)}
        for at in piece.union(*(hole for i, hole in enumerate(holes) if i not in kept)):
            result[at] = True
    return result


@pytest.mark.parametrize("seed", range(40))
def test_pieces_and_holes_are_those_of_a_plain_flood_fill(seed):
    generator = np.random.default_rng(seed)
    mask = generator.random((14, 17)) < generator.uniform(0.3, 0.8)
    most = int(generator.integers(-1, 1))  # of holes of one size it is open which are the largest
    limits = (int(generator.integers(0, 8)), int(generator.integers(0, 8)), most)
    assert np.array_equal(large_pieces(mask, *limits), reference(mask, *limits))


def test_nested_rings_are_those_of_a_plain_flood_fill():
    distance = np.abs(np.indices((33, 33)) - 16).max(axis=0)
    mask = distance % 4 < 2
    for limits in [(0, 0, -1), (20, 60, -1), (0, 200, 1), (100, 0, 0), (60, 30, -1), (0, 300, -1)]:
        assert np.array_equal(large_pieces(mask, *limits), reference(mask, *limits))


def test_areas_are_in_square_millimetres_or_in_squares_of_512_pixels():
    picture = slide_picture((40, 40), (0, 0, 10, 10, PINK), (20, 20, 30, 29, PINK))  # 100 and 90 pixels
    in_mm2 = tissue_of(picture, area=0.01, min_area=0.95)
    assert in_mm2.mask.sum() == 100
    in_squares = tissue_of(picture, l0=64.0**2, min_area=1.5, area_unit="patch512")  # 64 pixels a square: 96
    assert in_squares.mask.sum() == 100
    assert tissue_of(picture, l0=64.0**2, min_area=1.4, area_unit="patch512").mask.sum() == 190


# Which tiles are kept

RING = np.zeros((32, 32), dtype=bool)
RING[8:24, 8:24] = True
RING[12:20, 12:20] = False
ANY = TissueSettings(keep="four_points_any")
ALL = TissueSettings(keep="four_points_all")


def test_four_points_lie_halfway_between_the_centre_and_the_corners():
    """Points of a tile of 8 lie 2 and 6 pixels from its origin; the ring begins at pixel 8."""
    near, far = squares(8, (1, 8), (2, 8), (5, 8), (6, 8))
    assert keeps(Tissue(RING), near, far, ANY).tolist() == [0, 1, 1, 1]
    assert keeps(Tissue(RING), near, far, ALL).tolist() == [0, 0, 0, 1]


def test_a_tile_with_its_centre_in_a_hole_is_dropped_and_a_hole_counts_as_inside_else():
    tissue = Tissue(RING)
    near, far = squares(8, (12, 12), (8, 12), (7, 12), (15, 15), (16, 16))  # centres: 16, 12, 11, 19, 20
    assert keeps(tissue, near, far, ANY).tolist() == [0, 0, 1, 0, 1]
    assert keeps(tissue, near, far, ALL).tolist() == [0, 0, 1, 0, 1]
    filled = Tissue(large_pieces(RING, 0, 64, -1))
    assert keeps(filled, near, far, ALL).tolist() == [1, 1, 1, 1, 1]


def test_points_beyond_the_slide_lie_in_no_tissue():
    near, far = squares(8, (-6, 0), (2, 2), (28, 0))
    assert keeps(Tissue(np.ones((8, 32), dtype=bool)), near, far, ALL).tolist() == [0, 0, 0]
    assert keeps(Tissue(np.ones((8, 32), dtype=bool)), near, far, ANY).tolist() == [1, 1, 1]


def test_by_share_tiles_have_their_share():
    near, far = squares(8, (8, 8), (4, 8), (12, 12), (0, 0))
    wanted = [0.75, 0.5, 0.0, 0.0]  # the first loses a quarter to the hole
    assert keeps(Tissue(RING), near, far, TissueSettings()).tolist() == wanted


# Presets: a picture of pixels that stand for so many of level 0, and the tiles that are kept


def preset(name: str) -> TissueSettings:
    return SlideSettings(preset=name).tissue


def preset_keeps(
    name: str, picture: np.ndarray, l0_side: float, l0_mpp: float, tile: float, *origins: tuple[float, float]
) -> list[float]:
    """What speaks for tiles of a side and at origins in pixels of the picture, whose pixels are `l0_side` wide."""
    settings = preset(name)
    readable = np.ones(picture.shape[:2], dtype=bool)
    tissue = segment(picture, readable, settings, (l0_side * l0_mpp / 1000) ** 2, l0_side**2)
    return keeps(tissue, *squares(tile, *origins), settings).tolist()


# At 16 µm of a slide of 0.25 µm a pixel is 64 of level 0 wide: a square of 512 has 64 pixels, a tile of 256 is 4 wide,
# its points lie 1 and 3 from its origin. The median rounds corners off, so areas here lie well off their limits.


def test_clam_biopsy_keeps_what_is_larger_than_one_square():
    picture = slide_picture((100, 120), (20, 20, 60, 60, PINK), (80, 20, 84, 30, PINK), (80, 60, 100, 80, PINK))
    # The second, 4 pixels wide, does not survive the median of 11.
    tiles = [(28, 28), (0, 0), (80, 24), (88, 68), (16, 40), (18, 40)]
    assert preset_keeps("clam-biopsy", picture, 64, 0.25, 4, *tiles) == [1, 0, 0, 1, 0, 1]


def test_clam_biopsy_needs_more_saturation_than_clam_tcga():
    picture = slide_picture((100, 100), (20, 20, 60, 60, PALE))  # 10 of 255
    assert preset_keeps("clam-biopsy", picture, 64, 0.25, 4, (36, 36)) == [0]
    assert preset_keeps("clam-tcga", picture, 64, 0.25, 4, (36, 36)) == [1]


def test_clam_tcga_keeps_pieces_of_more_than_16_squares():
    """1024 pixels: a square of 36 has 1296, one of 30 has 900."""
    picture = slide_picture((100, 100), (10, 10, 46, 46, PINK), (60, 60, 90, 90, PINK))
    assert preset_keeps("clam-tcga", picture, 64, 0.25, 4, (28, 28), (72, 72)) == [1, 0]


def test_clam_tcga_fills_holes_of_up_to_4_squares():
    """256 pixels: a hole of 20 x 20 stays and drops tiles with their centre in it, one of 12 x 12 is filled."""
    white = (60, 60, 80, 80, WHITE), (20, 20, 32, 32, WHITE)
    picture = slide_picture((120, 120), (10, 10, 110, 110, PINK), *white)
    tiles = [(68, 68), (24, 24), (56, 68), (60, 68), (40, 40), (110, 50), (107, 50)]
    # (56, 68) has its centre, 58, before the hole; (60, 68) has it at 62, in the hole, which begins at 60 or 61.
    assert preset_keeps("clam-tcga", picture, 64, 0.25, 4, *tiles) == [0, 1, 1, 0, 1, 0, 1]


def test_clam_tcga_keeps_eight_holes_of_a_piece():
    """Nine holes of more than 256 pixels, the fourth a little smaller than the others: it is filled."""
    left = [12 + 30 * number for number in range(9)]
    holes = [(x, 12, x + (18 if number == 3 else 20), 34, WHITE) for number, x in enumerate(left)]
    picture = slide_picture((50, 290), (2, 2, 285, 46, PINK), *holes)
    assert preset_keeps("clam-tcga", picture, 64, 0.25, 4, *((x + 7, 20) for x in left)) == [0, 0, 0, 1] + [0] * 5


# At 8 µm with tiles of 256 at 0.5 µm a tile is 16 pixels wide.


def test_trident_keeps_tiles_that_show_any_tissue_and_fills_holes():
    """0.1 mm² are 1562.5 pixels of 64 µm²: a square of 40 has 1600, one of 39 has 1521."""
    ring = (10, 10, 70, 70, PINK), (30, 30, 50, 50, WHITE)
    picture = slide_picture((160, 160), *ring, (100, 10, 140, 50, PINK), (100, 100, 139, 139, PINK))
    tiles = [(0, 0), (32, 32), (64, 64), (70, 16), (85, 16), (84, 16), (112, 112), (80, 64)]
    shares = preset_keeps("trident-20x-256", picture, 16, 0.5, 16, *tiles)
    # (0, 0) overlaps by 6 x 6 of 256; (32, 32) lies in the filled hole; (85, 16) overlaps one column of the square.
    assert shares == pytest.approx([36 / 256, 1, 36 / 256, 0, 1 / 16, 0, 0, 0])
    kept = [share > 0 and share >= preset("trident-20x-256").min_share for share in shares]
    assert kept == [True, True, True, False, True, False, False, False]


def test_stamp_keeps_tiles_that_are_darker_than_240():
    """At 256 µm a tile is one pixel of the picture."""
    picture = slide_picture((2, 3), (0, 0, 1, 1, (240, 240, 240)), (1, 0, 2, 1, (239, 239, 239)), (2, 0, 3, 1, PINK))
    tiles = [(0, 0), (1, 0), (2, 0), (0, 1), (0.5, 0), (0.4, 0)]
    shares = preset_keeps("stamp-1.14", picture, 1024, 0.25, 1, *tiles)
    assert shares == pytest.approx([0, 1, 1, 0, 0.5, 0.4])
    kept = [share >= preset("stamp-1.14").min_share for share in shares]
    assert kept == [False, True, True, False, True, False]
