"""A prior that nobody trained: likelihoods one by one, samples that do not repeat, and one compilation for a sweep."""

import dataclasses

import jax
import numpy as np
import pytest
import sets
import untrained
from PIL import Image

import vqgan_jax as vq
from vqgan_jax import data
from vqgan_jax.evaluate import classifier, drawing, of_prior, protocol
from vqgan_jax.evaluate.features import open_networks

COUNT, CLASSES = 21, 3
pytestmark = pytest.mark.slow

OPTIONS = {"temperature": 1.0, "top_p": None, "guidance": 1.0, "power": 1.0, "schedule": "constant", "greedy": False}


@pytest.fixture(scope="module")
def prior(tmp_path_factory):
    """Of 8 x 8 codes of 16 px, over images in folders of three classes."""
    folder = tmp_path_factory.mktemp("images")
    for split, count in (("validation", COUNT), ("train", 12)):
        for i, image in enumerate(sets.blobs(count, seed=len(split))):
            place = folder / split / "abc"[i % CLASSES]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:03d}.png")
    return untrained.prior(side=8, classes=CLASSES, data__source=f"folder:{folder}")


def asked(samples: int = 0, **more) -> of_prior.DrawRequest:
    return of_prior.DrawRequest(samples=samples, **{"settings": [OPTIONS | {"top_k": 16}]} | more)


def first_of(report) -> list:
    """The samples to look at of each setting."""
    return list(report.sections["samples"].values())


@pytest.fixture(scope="module")
def report(prior):
    settings = of_prior.settings(OPTIONS, "top_k:1,16;guidance:1,3")
    request = sets.request("nll", "fd_vgg", "own_class", batch_size=8)
    return of_prior.evaluate(prior, request, asked(12, settings=settings, neighbours=3), workdir="here")


def test_every_token_of_every_example_counts(prior, report):
    source = data.open_source(prior.config.data.source, split="validation", image_size=16)
    (batch,) = data.evaluation_batches(source, image_size=16, batch_size=COUNT, num_threads=1)
    nats = -np.asarray(vq.log_likelihood(prior, batch["image"], labels=batch["label"]), np.float64) / 64
    (row,) = [row for row in report.results if row.metric == "nll"]
    assert row.value == pytest.approx(nats.mean(), rel=1e-5)
    assert (row.subject_count, row.reference, row.sampling) == (COUNT, "none", {})
    assert [name for name, *_ in report.sections["classes"]] == ["a", "b", "c"]
    for label, (_, count, nll, drawn, _) in enumerate(report.sections["classes"]):
        assert (count, drawn) == (7, 4)
        assert nll == pytest.approx(nats[batch["label"] == label].mean(), rel=1e-5)


def test_the_table_of_classes_has_no_share_that_was_not_measured(prior):
    rows = of_prior.class_rows(prior, ("a", "b"), np.array([[0.0, 2.0], [0.0, 4.0]]), np.array([0, 1, 2, 0]))
    assert [(name, count, drawn) for name, count, _, drawn, _ in rows] == [("a", 2, 2), ("b", 0, 1), ("2", 0, 1)]
    assert rows[0][2] == 3.0
    assert np.isnan([own for *_, own in rows]).all()


def test_a_sweep_has_a_record_for_each_setting(report):
    rows = [row for row in report.results if row.metric == "fd_vgg12"]
    assert [(row.sampling["top_k"], row.sampling["guidance"]) for row in rows] == [
        (1, 1.0),
        (1, 3.0),
        (16, 1.0),
        (16, 3.0),
    ]
    assert all(row.subject_count == 12 and row.reference_count == COUNT for row in rows)
    assert len({row.subject_fingerprint for row in rows}) == 4
    assert len({row.reference_fingerprint for row in rows}) == 1
    assert report.results[1].resize == "none, all are 16x16 | samples: none, drawn at 16x16"


def test_a_sweep_is_one_compilation(prior, caplog):
    labels, numbers, _ = of_prior.subjects_of(prior, 8)
    with jax.log_compiles():
        for options in of_prior.settings(OPTIONS, "top_k:1,7,16;guidance:1,3;temperature:0.5,1;top_p:0.5,1"):
            drawing.draw(prior, labels, numbers, seed=0, batch_size=8, options=options)
    compiled = [line for line in caplog.messages if line.startswith("Finished XLA compilation of jit(_sample)")]
    assert len(compiled) == 1


def test_a_thousand_samples_are_a_thousand(prior):
    """The class and the number make the key: one seed for every class would repeat (E11)."""
    labels, numbers, rows = of_prior.subjects_of(prior, 1000)
    assert not rows
    assert len(set(zip(labels.tolist(), numbers.tolist(), strict=True))) == 1000
    assert np.bincount(labels).tolist() == [334, 333, 333]
    _, codes = drawing.draw(prior, labels, numbers, seed=0, batch_size=200, options=OPTIONS)
    assert len({code.tobytes() for code in codes}) == 1000


def test_of_more_samples_the_best_of_each_class_count(prior):
    """A third of 36: the four brightest of the twelve of each class, known by their pixels."""
    bright = lambda images, labels: images.mean((1, 2, 3)) - 1000.0 * labels  # classes are not compared
    settings = of_prior.settings(OPTIONS | {"top_k": 16}, "accept_rate:1,0.3334")
    request = sets.request("fd_vgg", batch_size=8)
    report = of_prior.evaluate(prior, request, asked(12, settings=settings, scorer=bright), workdir="here")
    everyone, choice = report.results
    assert (everyone.sampling["accept_rate"], choice.sampling["accept_rate"]) == (1.0, 0.3334)
    assert everyone.subject_count == choice.subject_count == 12
    labels, numbers, _ = of_prior.subjects_of(prior, 36)
    images, _ = drawing.draw(prior, labels, numbers, seed=0, batch_size=8, options=OPTIONS | {"top_k": 16})
    order = np.argsort(-images.mean((1, 2, 3)), kind="stable")
    best = np.sort(np.concatenate([order[labels[order] == c][:4] for c in range(3)]))
    np.testing.assert_array_equal(first_of(report)[0], images[:12])
    np.testing.assert_array_equal(first_of(report)[1], images[best])
    with pytest.raises(ValueError, match=r"`accept_rate` must be in \(0, 1\], of a class-conditional prior and with a"):
        of_prior.evaluate(prior, request, asked(12, settings=settings), workdir="here")


def test_a_classifier_tells_which_samples_look_like_their_class(prior):
    """One that always says `b`, and finds an image the likelier the brighter it is."""

    class Constant(classifier.Classifier):
        def log_probabilities(self, images):
            bright = images.mean((1, 2, 3))
            return np.stack([0 * bright, bright, 0 * bright], axis=1)

    record = {"accuracy": 0.625, "source": "folder:here"}
    always = Constant({}, record, ("classifier.msgpack", "0123456789abcdef"))
    settings = of_prior.settings(OPTIONS | {"top_k": 16}, "accept_rate:1,0.5")
    draws = asked(10, settings=settings, classifier=always, scorer=always.scores)
    report = of_prior.evaluate(prior, sets.request("class_accuracy", batch_size=8), draws, workdir="here")
    for row in report.results:
        assert (row.metric, row.value) == ("class_accuracy10", 0.3)  # of a, b, c in turn ten have four, three and three
        assert "a classifier that is right about 62.5% of folder:here, held out" in row.variant
        assert (row.network, row.network_hash) == always.file
    assert [own for *_, own in report.sections["classes"]] == [0.0, 1.0, 0.0]


def test_copies_of_training_images_are_found(prior):
    source = data.open_source(prior.config.data.source, split="train", image_size=16)
    (batch,) = data.evaluation_batches(source, image_size=16, batch_size=12, num_threads=1)
    networks = open_networks(protocol.choose(["fd_vgg"], "prior").values(), None)
    samples = np.concatenate([batch["image"][[7]], sets.blobs(1, seed=99)])
    samples = np.concatenate([samples, batch["image"][[4], :, ::-1]])  # the run mirrors half of its images
    _, near, distances, held_out = of_prior.neighbours(
        prior, sets.request(batch_size=8), networks, prior.config, samples, sets.blobs(5, seed=98)
    )
    np.testing.assert_array_equal(near[[0, 6]], samples[[0, 2]])
    assert max(distances[0, 0], distances[2, 0]) < 1e-4 < 0.05 < distances[1, 0]
    assert np.all(np.diff(distances, axis=1) >= 0)
    assert held_out.shape == (3,)
    assert near.shape == (9, 16, 16, 3)


def test_held_out_images_beside_the_neighbours_are_held_out_whatever_the_reference(prior):
    report = of_prior.evaluate(
        prior, sets.request("fd_vgg", batch_size=8), asked(6, reference="train", neighbours=3), workdir="here"
    )
    *_, held_out = report.sections["neighbours"]
    assert held_out.shape == (3,)
    assert held_out.min() > 0.01


def test_samples_of_fewer_than_all_classes_can_be_chosen(prior):
    settings = of_prior.settings(OPTIONS | {"top_k": 16}, "accept_rate:0.5")
    draws = asked(1, settings=settings, scorer=lambda images, labels: images.mean((1, 2, 3)))
    assert of_prior.accepted(prior, sets.request(batch_size=8), draws, settings[0], "").tolist() == [0]


def test_references_must_have_the_classes_of_the_prior(prior, tmp_path):
    archive = str(sets.archive(tmp_path / "x.npz", sets.blobs(8)))
    with pytest.raises(ValueError, match=r"needs references of the prior's 3 classes, a, b, c .*; .* has none"):
        of_prior.evaluate(prior, sets.request("own_class"), asked(6, reference=archive), workdir="here")


def test_the_table_of_classes_is_of_the_first_setting(report):
    own = next(row.value for row in report.results if row.metric.startswith("own_class"))
    shares = [(drawn, share) for *_, drawn, share in report.sections["classes"]]
    assert own == pytest.approx(sum(drawn * share for drawn, share in shares) / 12)
    assert "by LPIPS" in report.sections["judge"]


def test_what_cannot_be_measured_is_refused(prior):
    evaluate = lambda *metrics, **more: of_prior.evaluate(prior, sets.request(*metrics), asked(**more), workdir="here")
    with pytest.raises(ValueError, match="`fd_vgg` is of samples, of which none are asked for"):
        evaluate("fd_vgg")
    with pytest.raises(ValueError, match="`precision_vgg` needs at least 4 images in each set; samples has 3"):
        evaluate("precision_vgg", samples=3)
    with pytest.raises(ValueError, match="`class_accuracy` needs a classifier"):
        evaluate("class_accuracy", samples=3)
    with pytest.raises(ValueError, match="'psnr' is for a tokenizer"):
        evaluate("psnr")
    with pytest.raises(ValueError, match="a sweep must look like top_k:50,100"):
        of_prior.settings(OPTIONS, "topk:1")


def test_the_mean_over_settings_names_each_combination_once():
    found = of_prior.settings(OPTIONS | {"top_k": None}, "guidance:1,2;top_k:5")
    assert [(one["guidance"], one["top_k"]) for one in found] == [(1.0, 5), (2.0, 5)]
    assert list(found[0])[-2:] == ["guidance", "top_k"]
    assert of_prior.settings(OPTIONS, "") == [OPTIONS]
    assert jax.process_count() == 1


@pytest.mark.parametrize("kind", ["boxes", "segmentation"])
def test_samples_of_layouts_and_maps_go_by_held_out_ones_in_turn(kind):
    prior = untrained.prior(kind, side=8, classes=9 if kind == "segmentation" else 8, data__source="scenes")
    request = dataclasses.replace(sets.request("nll", "fd_vgg", batch_size=8), limit=12)
    report = of_prior.evaluate(prior, request, asked(10), workdir="here")
    nll, distance = report.results
    assert (distance.subject_count, distance.reference_count) == (10, 12)
    labels, numbers, rows = of_prior.subjects_of(prior, 10)
    images, _ = drawing.draw(prior, labels, numbers, seed=0, batch_size=8, options=OPTIONS | {"top_k": 16}, rows=rows)
    np.testing.assert_array_equal(first_of(report)[0], images)
    assert len(np.unique(rows["condition"], axis=0)) == 10  # other examples' conditions
    assert nll.value > 0
    assert not report.sections["classes"]
