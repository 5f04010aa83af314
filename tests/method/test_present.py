"""The present classes of each image: their lists, and the way between maps of all classes and maps of those alone."""

import pytest
import torch

from toco_lab.method.present import PresentClasses

LABEL = torch.tensor([[0, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1], [0, 0, 0, 0, 1, 0]]).float()


def test_present_classes_come_first_and_absent_ones_do_not_count():
    present = PresentClasses.of(LABEL)
    assert present.index[:, :2].tolist() == [[0, 1], [1, 2], [4, 0]] and present.index[1, 2] == 5
    assert present.mask.tolist() == [[False] * 3, [True] * 3, [True, False, False]]
    assert PresentClasses.of(LABEL, 2).index.tolist() == present.index[:, :2].tolist()


def test_maps_are_gathered_and_scattered():
    present, maps = PresentClasses.of(LABEL), torch.randn(2, 3, 6, 2, 2)
    gathered = present.gather(maps)
    for image in range(3):
        for place in range(3):
            assert torch.equal(gathered[:, image, place], maps[:, image, present.index[image, place]])
    assert torch.equal(present.scatter(gathered), maps * LABEL[:, :, None, None])
    with pytest.raises(ValueError, match=r"\(3, 6\).*\(3, 5, 2, 2\)"):
        present.gather(torch.zeros(3, 5, 2, 2))


def test_dense_has_every_class_in_its_place():
    dense, maps = PresentClasses.of(LABEL).dense(), torch.randn(3, 6, 2, 2)
    assert dense.index.tolist() == [list(range(6))] * 3 and torch.equal(dense.mask, LABEL.bool())
    assert torch.equal(dense.gather(maps), maps)
    assert torch.equal(dense.scatter(maps), maps * LABEL[:, :, None, None])


def test_labels_get_their_classes_back():
    present = PresentClasses.of(torch.tensor([[0, 1, 0, 1.0], [1, 0, 0, 0], [0, 0, 0, 0]]))
    label = torch.tensor([[[0, 1, 2, 255]], [[1, 0, 255, 1]], [[0, 0, 255, 0]]])
    assert present.class_label(label).tolist() == [[[0, 2, 4, 255]], [[1, 0, 255, 1]], [[0, 0, 255, 0]]]


def test_there_is_a_place_even_if_no_class_is_present():
    assert PresentClasses.of(torch.zeros(2, 3), 0).mask.tolist() == [[False], [False]]
