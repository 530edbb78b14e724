from pathlib import Path

import numpy as np
import torch
from PIL import Image

from promptnet.datasets.avatars.person import FIELDS
from promptnet.metrics.judge import feature_distance, load_judge, pixel_l1, read_images, to_pixels
from promptnet.models.judge import AvatarJudge


def flat(value: int, size_px: int = 64) -> Image.Image:
    return Image.new("RGB", (size_px, size_px), (value, value, value))


def test_pixels_run_from_minus_one_to_one():
    pixels = to_pixels([flat(0), flat(255)])
    assert pixels.shape == (2, 3, 64, 64)
    assert (pixels[0] == -1).all()
    assert (pixels[1] == 1).all()


def test_pixel_difference_is_in_colour_values_of_zero_to_one():
    found = pixel_l1([flat(0), flat(51), flat(255)], [flat(255), flat(0), flat(255)])
    np.testing.assert_allclose(found, [1.0, 0.2, 0.0], atol=1e-7)


def test_feature_distance_is_one_minus_the_cosine():
    first = np.array([[1.0, 0.0], [2.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    second = np.array([[3.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, 0.0], [1.0, 0.0]])
    np.testing.assert_allclose(feature_distance(first, second), [0, 1, 1 - 2**-0.5, 2, 1])


def test_batches_do_not_change_predictions():
    torch.manual_seed(0)
    judge = AvatarJudge({field: list(values) for field, values in FIELDS.items()}, width=8)
    images = [flat(value) for value in (0, 60, 120, 180, 240)]
    whole, parts = read_images(judge, images), read_images(judge, images, batch=2)
    assert whole.records == parts.records
    assert all(record.keys() == FIELDS.keys() for record in whole.records)
    np.testing.assert_allclose(whole.features, parts.features, atol=1e-5)
    assert whole.features.shape == (5, 32)


def test_images_are_resized_to_the_judges_size():
    judge = AvatarJudge({field: list(values) for field, values in FIELDS.items()}, width=8)
    small, large = read_images(judge, [flat(90)]), read_images(judge, [flat(90, 128)])
    np.testing.assert_allclose(small.features, large.features, atol=1e-6)


def test_a_saved_judge_predicts_the_same(tmp_path: Path):
    torch.manual_seed(1)
    judge = AvatarJudge({field: list(values) for field, values in FIELDS.items()}, width=8)
    judge.save_pretrained(tmp_path)
    images = [flat(30), flat(200)]
    assert read_images(load_judge(tmp_path), images).records == read_images(judge, images).records
