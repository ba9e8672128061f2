"""Diversity over keys and utility for other uses, against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from facezoo.errors import InputError
from facezoo.evaluate.utility import Found, compare_found, find_faces
from facezoo.faces.detect import Face
from facezoo.metrics.diversity import key_diversity


def test_diversity_by_hand():
    """First face: results at 0, 60 and 180 degrees (pairs 60, 180, 120); second: all at 90, the original at 0."""
    half, root = 0.5, np.sqrt(0.75)
    results = np.array([[[1.0, 0], [2 * half, 2 * root], [-3, 0]], [[0, 1.0], [0, 2], [0, 3]]])
    figures = key_diversity(results, np.array([[5.0, 0], [1, 0]]))
    assert figures.kffa == pytest.approx((120 + 0) / 2)
    assert figures.between_keys == pytest.approx(((0.5 - 1 - 0.5) / 3 + 1) / 2)
    assert figures.cosine == pytest.approx(((1 + 0.5 - 1) / 3 + 0) / 2)
    assert (figures.faces, figures.keys) == (2, 3)


def test_unrelated_results_are_at_right_angles():
    vectors = np.random.default_rng(0).standard_normal((50, 4, 512))
    assert key_diversity(vectors, vectors[:, 0]).kffa == pytest.approx(90, abs=0.5)


@pytest.mark.parametrize(
    ("results", "originals"),
    [
        (np.zeros((2, 1, 3)), np.zeros((2, 3))),
        (np.zeros((2, 2, 3)), np.zeros((3, 3))),
        (np.full((2, 2, 3), np.nan), np.zeros((2, 3))),
    ],
)
def test_diversity_refuses_what_it_cannot_measure(results, originals):
    with pytest.raises(InputError):
        key_diversity(results, originals)


def found(x: float, y: float) -> Found:
    return Found(np.array([x, y, x + 10, y + 20]), np.full((5, 2), x))


def test_utility_by_hand():
    """Four originals, one without a face; of the other three one is lost, one moved by (3, 1), one as it was."""
    originals = [found(0, 0), None, found(5, 5), found(9, 9)]
    results = [None, found(0, 0), found(8, 6), found(9, 9)]
    row = compare_found(originals, results)
    assert (row["detected"]["value"], row["detected"]["n"]) == (pytest.approx(2 / 3), 3)
    assert row["box_l1"]["value"] == pytest.approx((2 + 0) / 2)
    assert row["points_l1"]["value"] == pytest.approx(3 / 2)
    with pytest.raises(InputError, match="no face on any original"):
        compare_found([None], [None])
    with pytest.raises(InputError, match="cannot be compared"):
        compare_found([None], [])


def test_faces_are_looked_for_on_a_margin_and_told_in_pixels_of_the_crop():
    class Marks:
        """Finds one face at the first white pixel, and a smaller one beside."""

        def detect(self, rgb: np.ndarray) -> list[Face]:
            assert rgb.shape == (64, 64, 3)
            white = np.argwhere((rgb == 255).all(-1))
            if not len(white):
                return []
            y, x = white[0]
            points = np.tile(np.array([[x, y]], dtype=np.float32), (5, 1))
            return [
                Face(box=(x, y, x + 2, y + 2), points=points - 9, score=0.99),
                Face(box=(x, y, x + 10, y + 12), points=points, score=0.9),
            ]

    pictures = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    pictures[1, 7, 4] = 255
    nothing, face = find_faces(pictures, Marks())
    assert nothing is None
    assert face.box.tolist() == [4, 7, 14, 19]
    assert face.points.tolist() == [[4, 7]] * 5
