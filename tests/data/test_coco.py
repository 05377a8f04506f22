import json

import numpy as np
import pytest
from PIL import Image

from vqgan_jax.data import ImageError, open_source
from vqgan_jax.data.coco import LIMBS, Coco, draw_limbs, objects_files, read_records

THINGS = [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 10, "name": "traffic light"}]
STUFF = [{"id": 92, "name": "banner"}, {"id": 100, "name": "cardboard"}, {"id": 183, "name": "other"}]
NAMES = ("person", "traffic light", "cardboard", "bicycle", "banner")  # ids as texts: 1 10 100 2 92


def annotation(image, category, bbox, *, crowd=0, **more):
    number = 1000 * image + category
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": crowd} | more


def write(root, kind, categories, annotations, *, images=(7,), split="val2017"):
    headers = [{"id": i, "file_name": f"{i:012}.png", "width": 200, "height": 100} for i in images]
    document = {"images": headers, "annotations": annotations, "categories": categories}
    (root / "annotations").mkdir(exist_ok=True)
    (root / f"annotations/{kind}_{split}.json").write_text(json.dumps(document))


def write_photos(root, folder="val2017", *, images=(7,), mode="RGB", size=(200, 100)):
    (root / folder).mkdir(parents=True, exist_ok=True)
    for i in images:
        Image.new(mode, size, i if mode == "L" else (i, 0, 0)).save(root / f"{folder}/{i:012}.png")


PAIR = [annotation(7, 10, [50, 25, 100, 50]), annotation(7, 2, [0, 0, 20, 10], crowd=1)]


@pytest.fixture
def coco(tmp_path):
    """One image with three objects, photo and all."""
    write(tmp_path, "instances", THINGS, PAIR)
    write(tmp_path, "stuff", STUFF, [annotation(7, 92, [0, 50, 200, 50]), annotation(7, 183, [0, 0, 200, 100])])
    write_photos(tmp_path)
    return tmp_path


def test_objects_are_relative_boxes_with_the_rank_of_their_id_as_a_text(coco):
    source = open_source(f"coco:{coco}", split="validation", image_size=8)
    assert (source.name, source.class_names, source.category_names) == (f"coco:{coco}/val2017", (), NAMES)
    example = source[0]
    np.testing.assert_array_equal(example["image"], np.full((100, 200, 3), [7, 0, 0]))
    assert example["label"] == 0
    boxes = [[0.25, 0.25, 0.5, 0.5], [0, 0, 0.1, 0.1], [0, 0.5, 1, 0.5]]
    np.testing.assert_array_equal(example["boxes"], np.array(boxes), strict=True)
    np.testing.assert_array_equal(example["categories"], np.array([1, 3, 4], np.int32), strict=True)
    np.testing.assert_array_equal(example["modifiers"], np.array([0, 1, 0], np.int32), strict=True)
    assert set(example) == {"image", "label", "boxes", "categories", "modifiers"}


def test_without_stuff_there_are_things_alone(coco):
    (coco / "annotations/stuff_val2017.json").unlink()
    source = Coco(coco, split="val2017")
    assert source.category_names == ("person", "traffic light", "bicycle")
    assert source[0]["categories"].tolist() == [1, 2]


def test_small_objects_and_then_empty_and_crowded_images_are_left_out(tmp_path):
    large, small = [0, 0, 1, 1], [0, 0, 1, 0.1]  # 5e-5 and 5e-6 of an image
    counts = {1: [large], 2: [large] * 2, 3: [large, small], 4: [large] * 30 + [small], 5: [large] * 31, 6: []}
    annotations = [annotation(image, 1, box) for image, boxes in counts.items() for box in boxes]
    write(tmp_path, "instances", THINGS, annotations, images=counts)
    records = read_records(objects_files(tmp_path, "val2017"))
    assert {int(record.file_name[:-4]): len(record.boxes) for record in records} == {2: 2, 4: 30}


def test_a_box_may_overhang_by_a_pixel_which_is_cut_off(tmp_path):
    write(tmp_path, "instances", THINGS, [annotation(7, 1, [-1, 90, 100, 11]), annotation(7, 1, [100.5, 0, 100, 50])])
    (record,) = read_records(objects_files(tmp_path, "val2017"))
    np.testing.assert_allclose(record.boxes, [[0, 0.9, 0.495, 0.1], [0.5025, 0, 0.4975, 0.5]], rtol=1e-12)


@pytest.mark.parametrize(
    "box", [[-1.5, 0, 9, 9], [0, 0, 201.5, 9], [0, 99, 9, 3], [0, 0, -5, 9], [0, 0, float("nan"), 9]]
)
def test_a_box_further_out_is_refused_and_named(tmp_path, box):
    write(tmp_path, "instances", THINGS, [annotation(7, 1, [0, 0, 9, 9]), annotation(7, 2, box)])
    with pytest.raises(ValueError, match=r"annotation 7002 of 000000000007.png has .*\[.* image of 200 x 100"):
        read_records(objects_files(tmp_path, "val2017"))


def test_label_maps_come_along(coco):
    write_photos(coco, "segmentations/val2017", mode="L")
    np.testing.assert_array_equal(Coco(coco, split="val2017")[0]["segmentation"], np.full((100, 200), 7, np.uint8))
    write_photos(coco, "segmentations/val2017", mode="L", size=(100, 200))
    with pytest.raises(ImageError, match=r"200 x 100 pixels; .*segmentations/val2017/000000000007.png is 100 x 200"):
        Coco(coco, split="val2017")[0]
    (coco / "segmentations/val2017/000000000007.png").unlink()
    with pytest.raises(ValueError, match=r"segmentations/val2017 must hold .*000000000007.png are missing"):
        Coco(coco, split="val2017")


def test_photos_may_lie_in_images_and_must_be_there_and_whole(coco):
    (coco / "images").mkdir()
    (coco / "val2017").rename(coco / "images/val2017")
    assert Coco(coco, split="validation")[0]["image"][0, 0, 0] == 7
    write_photos(coco, "images/val2017", size=(100, 200))
    with pytest.raises(ImageError, match=r"as annotated, 200 x 100 pixels; 000000000007.png is 100 x 200"):
        Coco(coco, split="validation")[0]
    (coco / "images/val2017/000000000007.png").unlink()
    with pytest.raises(ValueError, match=r"000000000007.png are missing"):
        Coco(coco, split="validation")


def test_annotations_that_are_missing_name_those_there(coco):
    with pytest.raises(ValueError, match=r"annotations/instances_train2017.json; .* has instances_val2017.json of"):
        Coco(coco, split="train")
    with pytest.raises(ValueError, match="has none of the kind"):
        Coco(coco / "val2017", split="train")


def test_an_image_without_enough_objects_is_no_data(tmp_path):
    write(tmp_path, "instances", THINGS, PAIR[:1])
    write_photos(tmp_path)
    with pytest.raises(ValueError, match="must hold images of 2 to 30 objects; it holds none"):
        Coco(tmp_path, split="val2017")


def person(**places):
    """Joints of one person by number, `j5=(x, y)`; all others are not to be seen."""
    joints = np.zeros((17, 3))
    for name, place in places.items():
        joints[int(name[1:])] = (*place, 2)
    return joints


def test_limbs_join_the_joints_that_can_be_seen(coco):
    shoulders = person(j5=(20, 50), j6=(180, 50), j9=(20, 90))  # the wrist hangs on an elbow that cannot be seen
    people = [annotation(7, 1, [0, 0, 9, 9], keypoints=shoulders.ravel().tolist())]
    write(coco, "person_keypoints", THINGS[:1], people)
    picture = Coco(coco, split="val2017")[0]["keypoints"]
    assert picture.shape == (100, 200, 3)
    rows, columns = np.nonzero(picture.any(-1))
    assert (rows.min(), rows.max()) in {(49, 50), (50, 51)}  # a 64th of 100 pixels is two
    assert (columns.min(), columns.max()) == (20, 180)
    assert len(np.unique(picture[rows, columns], axis=0)) == 1


def test_without_people_the_picture_of_limbs_is_black(coco):
    write(coco, "person_keypoints", THINGS[:1], [])
    np.testing.assert_array_equal(Coco(coco, split="val2017")[0]["keypoints"], np.zeros((100, 200, 3), np.uint8))


def test_each_limb_has_a_colour_of_its_own():
    colours = set()
    for start, end in LIMBS:
        joints = person(**{f"j{start}": (5, 5), f"j{end}": (60, 40)})
        picture = draw_limbs(joints[None], (64, 64))
        (colour,) = {tuple(pixel) for pixel in picture[picture.any(-1)].tolist()}
        colours.add(colour)
    assert len(colours) == len(LIMBS) == 19
    assert {joint for limb in LIMBS for joint in limb} == set(range(17))
