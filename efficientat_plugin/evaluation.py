"""Scores of whole clips, however long they are."""

import datasets
import torch
from tqdm import tqdm

from efficientat_plugin.contracts import Skipped
from efficientat_plugin.data.decoding import UnreadableClip
from efficientat_plugin.data.skipped import SkippedClips
from efficientat_plugin.inference import AudioTagger
from efficientat_plugin.metrics import ClassificationStats, Scores, TaggingStats


def whole_clip_scores(
    tagger: AudioTagger, rows: datasets.Dataset, max_unreadable_share: float = 0.01
) -> Scores:
    """Scores of a tagger on clips from beginning to end.

    Those longer than the tagger's clips are heard in windows, whose probabilities are
    averaged; clips without labels are left out.

    Arguments
    ---------
    tagger : AudioTagger
    rows : datasets.Dataset
        From ``read_table``.
    max_unreadable_share : float
        More than this is an error.

    Returns
    -------
    TaggingScores or ClassificationScores
        As the tagger's ``target``.

    Raises
    ------
    TooManyUnreadable
        If too many clips cannot be read.
    ValueError
        If none has a label.

    Example
    -------
    >>> rows = read_table("clips.csv")  # doctest: +SKIP
    >>> whole_clip_scores(tagger, rows).mAP  # doctest: +SKIP
    0.52
    """
    skipped = SkippedClips(max_unreadable_share)
    multiclass = tagger.hparams.target == "multiclass"
    stats = ClassificationStats() if multiclass else TaggingStats()
    for row in tqdm(rows, desc="whole clips", unit="clip"):
        indices, _ = tagger.labels.indices(row["labels"])
        judged = torch.ones(len(tagger.labels))
        if row.get("judged") is not None:
            known, _ = tagger.labels.indices(row["judged"])
            judged = tagger.labels.multi_hot([*known, *indices])
        elif not indices:
            continue
        clip_id, sound = str(row["video_id"]), row["audio"]
        try:
            scores = tagger.probabilities([sound["bytes"] or sound["path"]])
        except UnreadableClip as error:
            skipped.add([Skipped(clip_id, str(error))], [])
            continue
        skipped.add((), [clip_id])
        labels = tagger.labels.multi_hot(indices)[None]
        stats.append([clip_id], torch.from_numpy(scores), labels, judged[None])
    skipped.finish_pass()
    return stats.summarize()
