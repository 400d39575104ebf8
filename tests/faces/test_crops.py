"""Crops: size, place and turn, against pictures whose eyes are known."""

import math

import numpy as np
import pytest
from PIL import Image

from raffect.datasets.frames import decode
from raffect.faces.crops import SIDE, cut_out, draw_sheet, encode, place_square
from raffect.faces.tracks import FIELDS


def face(x=0.0, y=0.0, w=1.0, h=1.0, eyes=(math.nan,) * 4):
    row = np.array([x, y, w, h, 1.0, *eyes])
    assert len(row) == len(FIELDS)
    return row


def noise(height=300, width=400):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)


def test_a_square_of_the_size_of_a_crop_is_those_very_pixels():
    rgb = noise()
    assert (
        cut_out(rgb, face(40, 60, SIDE, SIDE), 0.0) == rgb[60 : 60 + SIDE, 40 : 40 + SIDE]
    ).all()


def test_the_margin_is_a_share_of_the_longer_side_on_each_side():
    assert place_square(face(100, 50, 80, 120), 0.25) == (140.0, 110.0, 180.0, 0.0)
    rgb, small = noise(), face(150, 100, 56, 40)
    crop = cut_out(rgb, small, 0.5)  # 112 wide around (178, 120)
    assert (crop == rgb[64 : 64 + SIDE, 122 : 122 + SIDE]).all()


def test_what_leaves_the_picture_is_black():
    rgb = np.full((100, 100, 3), 200, np.uint8)
    crop = cut_out(rgb, face(-56, 0, SIDE, SIDE), 0.0)
    assert (crop[:99, :55] == 0).all()
    assert (crop[:99, 57:] == 200).all()
    assert (crop[101:] == 0).all()


@pytest.mark.parametrize("degrees", [0, 30, -75, 140])
@pytest.mark.parametrize("apart", [20, 70, 150])
def test_eyes_come_out_level_and_as_far_apart_as_in_training_crops(degrees, apart):
    angle, centre = math.radians(degrees), np.array([300.0, 280.0])
    along = np.array([math.cos(angle), math.sin(angle)]) * apart / 2
    left, right = centre - along, centre + along
    y, x = np.mgrid[:600, :600] + 0.5  # the middle of each pixel
    rgb = np.zeros((600, 600, 3), np.uint8)
    for channel, (ex, ey) in enumerate((left, right)):
        spot = np.exp(-((x - ex) ** 2 + (y - ey) ** 2) / (2 * (apart / 12) ** 2))
        rgb[..., channel] = (255 * spot).round()
    crop = cut_out(rgb, face(eyes=(*left, *right)), 0.13).astype(float)
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    found = []
    for channel in (0, 1):
        weights = crop[..., channel]
        found.append([(weights * axis).sum() / weights.sum() for axis in (columns, rows)])
    (lx, ly), (rx, ry) = found
    assert ly == pytest.approx(ry, abs=0.6)
    assert rx - lx == pytest.approx(0.3175 * SIDE, abs=0.8)
    assert (lx + rx) / 2 == pytest.approx(SIDE / 2, abs=0.8)
    assert ly / SIDE == pytest.approx(0.46, abs=0.015)


@pytest.mark.parametrize(
    "box",
    [(500, 0, 50, 50), (0, -90, 40, 40), (0, 0, 1e5, 1e5), (10, 10, 0.2, 0.2)],
)
def test_a_box_that_shows_no_face_gives_no_crop(box):
    assert cut_out(noise(), face(*box), 0.0) is None


def test_a_crop_survives_its_encoding():
    ramp = np.linspace(0, 255, SIDE).astype(np.uint8)
    crop = np.stack(
        [np.tile(ramp, (SIDE, 1)), np.tile(ramp, (SIDE, 1)).T, np.full((SIDE, SIDE), 60)], 2
    )
    crop = crop.astype(np.uint8)
    assert np.abs(decode(encode(crop)).astype(int) - crop).max() <= 6
    assert encode(crop) == encode(crop.copy())


def test_a_sheet_shows_every_crop():
    crops = [np.full((SIDE, SIDE, 3), value, np.uint8) for value in range(10, 110, 10)]
    sheet = draw_sheet(crops)
    assert set(range(10, 110, 10)) <= set(np.unique(sheet).tolist())
    assert Image.fromarray(draw_sheet(crops[:2])).size == (2 * (SIDE + 4) + 4, SIDE + 8)
