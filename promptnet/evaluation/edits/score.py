"""Scores of edits: edit success, preservation of the other fields, and distance to the truth.

An edit is scored on the images that lack the attribute; the others are left out, and so are renders that would look
the same with it. Of those images,

    change  = fraction for which the judge predicts the wanted value
    kept    = fraction of the other fields predicted as in the unedited image (in a render: as they are)
    both    = harmonic mean of the two
    person  = `kept` of the fields that say who it is
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from promptnet.datasets.avatars.person import FIELDS, IDENTITY_FIELDS
from promptnet.evaluation.edits.tasks import PLAIN, Edit, Group, Source, moved_back
from promptnet.metrics.bootstrap import Interval, of_statistic
from promptnet.metrics.judge import Array, Judge, Prediction, feature_distance, pixel_l1, read_images
from promptnet.metrics.scores import Record

Places = npt.NDArray[np.int64]
METRICS = ("change", "kept", "both", "person", "distance", "pixel_l1", "identity")
"""Distances exist for renders, identity for subjects."""


@dataclass(frozen=True)
class EditScores:
    """Scores of one method and edit on the images of one source: an array (P,) a metric, over all images."""

    asked: npt.NDArray[np.bool_]
    """Images that the edit is scored on."""
    values: Mapping[str, Array]
    fields: Mapping[str, Array]
    """Field to whether it is as wanted: the edited value, or unchanged."""

    def mean(self, values: Array, places: Places) -> Array:
        """Return the mean over the scored images among places (R, P), (R,); 0 if there are none."""
        asked = self.asked[places]
        return (values[places] * asked).sum(1) / np.maximum(asked.sum(1), 1)

    def metric(self, name: str, places: Places) -> Array:
        """Return a metric of resampled images, (R, P) -> (R,)."""
        if name != "both":
            return self.mean(self.values[name], places)
        change, kept = (self.mean(self.values[part], places) for part in ("change", "kept"))
        return 2 * change * kept / np.maximum(change + kept, 1e-12)

    def interval(self, name: str) -> Interval:
        """Return the metric over these images with its interval."""
        return of_statistic(lambda places: self.metric(name, places), len(self.asked))


@dataclass(frozen=True)
class EditScorer:
    """Score all methods of one source against the predictions for the unedited images.

    Args:
        source: where the images come from.
        groups: of that source.
        before: the fields of each unedited image, (P,).
        judge: the attribute classifier.
        size_px: of the true answers.
        device: of the judge.
    """

    source: Source
    groups: Sequence[Group]
    before: Sequence[Record]
    judge: Judge
    size_px: int
    device: str | None = None

    def score(self, edit: Edit | None, images: Sequence[Image.Image]) -> EditScores:
        """Score one method and edit, or the unedited images; images (P,) in the order of the groups."""
        prediction = self._read(images)
        changed = () if edit is None else (edit.field,)
        hits = {
            field: np.array(
                [read[field] == was[field] for read, was in zip(prediction.records, self.before, strict=True)]
            )
            for field in FIELDS
            if field not in changed
        }
        values: dict[str, Array] = {"kept": np.stack(list(hits.values())).mean(0)}
        values["person"] = np.stack([hits[field] for field in IDENTITY_FIELDS]).mean(0)
        asked = np.ones(len(images), dtype=bool)
        if edit is not None:
            asked = np.array([was[edit.field] != edit.value for was in self.before])
            hits[edit.field] = np.array([read[edit.field] == edit.value for read in prediction.records])
            values["change"] = hits[edit.field].astype(float)
        if self.source == "subjects":
            values["identity"] = self._identity(prediction.records)
        if self.source == "renders" and edit is not None:
            truths = self.truths(edit)
            asked = asked & self._visible(truths)
            true_prediction = self._read(truths)
            values["distance"] = feature_distance(prediction.features, true_prediction.features)
            values["pixel_l1"] = pixel_l1(images, truths)
        return EditScores(asked, values, {field: found.astype(float) for field, found in hits.items()})

    def truths(self, edit: Edit) -> list[Image.Image]:
        """Render the same people with only that attribute changed."""
        return [image for group in self.groups for image in group.renders(self.size_px, edit)]

    def _read(self, images: Sequence[Image.Image]) -> Prediction:
        """Read images of renders where faces usually are, whatever their frame."""
        frame = self.groups[0].frame if self.source == "renders" else PLAIN
        return read_images(self.judge, [moved_back(image, frame) for image in images], self.device)

    def _visible(self, truths: Sequence[Image.Image]) -> npt.NDArray[np.bool_]:
        """Return where the true answer looks otherwise than the person, (P,): a beard may hide the mouth."""
        renders = [image for group in self.groups for image in group.renders(self.size_px)]
        return np.array([truth.tobytes() != image.tobytes() for truth, image in zip(truths, renders, strict=True)])

    def _identity(self, records: Sequence[Record]) -> Array:
        """Return the fraction of the identity fields that are the subject's, (P,)."""
        avatars = [avatar.record() for group in self.groups for avatar in group.avatars()]
        return np.array(
            [
                np.mean([read[field] == who[field] for field in IDENTITY_FIELDS])
                for read, who in zip(records, avatars, strict=True)
            ],
            dtype=np.float64,
        )


def make_scorer(
    source: Source,
    groups: Sequence[Group],
    unedited: Sequence[Image.Image],
    judge: Judge,
    size_px: int,
    device: str | None = None,
) -> EditScorer:
    """Return the scorer of one source: renders have known fields, other images those predicted when unedited."""
    if source == "renders":
        before: Sequence[Record] = [avatar.record() for group in groups for avatar in group.avatars()]
    else:
        before = read_images(judge, unedited, device).records
    return EditScorer(source, groups, before, judge, size_px, device)


def averaged(scores: Sequence[EditScores], metric: str) -> Interval:
    """Return the mean of a metric over edits; images are resampled for all edits together."""
    return of_statistic(mean_metric(scores, metric), len(scores[0].asked))


def difference(ours: Sequence[EditScores], theirs: Sequence[EditScores], metric: str) -> Interval:
    """Return the difference of two methods' means over the same edits and images."""
    first, second = mean_metric(ours, metric), mean_metric(theirs, metric)
    return of_statistic(lambda places: first(places) - second(places), len(ours[0].asked))


def mean_metric(scores: Sequence[EditScores], metric: str) -> Callable[[Places], Array]:
    """Return the mean over edits as a function of places, (R, P) -> (R,)."""
    return lambda places: np.mean([one.metric(metric, places) for one in scores], axis=0)
