"""Evaluation of events equals sed_scores_eval and sed_eval; `make oracle` runs this."""

import numpy as np
import pytest
from small_detections import merged, random_case, random_criteria

pytest.importorskip("sed_scores_eval", reason="make oracle has an environment for it")

import dcase_util
import pandas as pd
import sed_eval
from sed_scores_eval import collar_based, intersection_based, segment_based

from efficientat_plugin.data.events.frame_events import (
    events_above,
    frame_times,
)
from efficientat_plugin.evaluation.event_scores import event_scores
from efficientat_plugin.evaluation.events import PSDS1, PSDS2, psds
from efficientat_plugin.evaluation.segment_scores import segment_auroc, segment_scores

SEEDS = range(100)
COLLARS = [(0.2, 0.5), (0.3, 0.2), (0.08, 0.0)]


def drawn(seed):
    """A case with events of each class, which sed_scores_eval needs."""
    case = random_case(seed)
    present = {label for events in case.events.values() for *_, label in events}
    columns = [k for k, name in enumerate(case.classes) if name in present]
    case = case.changed(lambda scores: scores[:, columns])
    return case._replace(classes=[case.classes[k] for k in columns])


def frames_of(case):
    """The scores as sed_scores_eval takes them."""
    frames = {}
    for clip, scores in case.scores.items():
        times = frame_times(len(scores), case.durations[clip])[:, None]
        rows = np.hstack([times[:-1], times[1:], scores])
        frames[clip] = pd.DataFrame(rows, columns=["onset", "offset", *case.classes])
    return frames


def truth_of(case):
    return {clip: merged(events) for clip, events in case.events.items()}


def assert_f_scores(found, published):
    averages = {"macro_average": found.macro, "micro_average": found.micro}
    assert found.per_class | averages == pytest.approx(published, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("criteria", [None, PSDS1, PSDS2])
def test_psds(seed, criteria):
    case = drawn(seed)
    criteria = dict(criteria or random_criteria(seed))
    if len(case.classes) == 1:  # of which sed_scores_eval computes no cross triggers
        criteria = {k: v for k, v in criteria.items() if k not in ("cttc", "alpha_ct")}
    value, per_class, *_ = intersection_based.psds(
        frames_of(case),
        truth_of(case),
        case.durations,
        dtc_threshold=criteria["dtc"],
        gtc_threshold=criteria["gtc"],
        cttc_threshold=criteria.get("cttc"),
        alpha_ct=criteria.get("alpha_ct", 0.0),
        alpha_st=criteria["alpha_st"],
        max_efpr=criteria.get("max_efpr", 100.0),
    )
    found = psds(*case, **criteria)
    assert found.value == pytest.approx(value, abs=1e-9)
    assert found.per_class == pytest.approx(
        {name: per_class[name] for name in case.classes}, abs=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("onsets_only", [False, True])
def test_event_scores(seed, onsets_only):
    case = drawn(seed)
    collar, share = COLLARS[seed % len(COLLARS)]
    theirs = {
        "onset_collar": collar,
        "offset_collar": 1e9 if onsets_only else collar,
        "offset_collar_rate": 0.0 if onsets_only else share,
    }
    ours = {
        "collar_seconds": collar,
        "length_share": share,
        "onsets_only": onsets_only,
    }
    frames, truth = frames_of(case), truth_of(case)
    f, *_ = collar_based.fscore(frames, truth, 0.7, **theirs)
    assert_f_scores(event_scores(*case, threshold=0.7, **ours), f)
    f, *_ = collar_based.best_fscore(frames, truth, **theirs)
    found = event_scores(*case, **ours)
    assert found.macro == pytest.approx(f["macro_average"], abs=1e-9)
    assert found.per_class == pytest.approx(
        {name: f[name] for name in case.classes}, abs=1e-9
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_segment_scores(seed):
    case = drawn(seed)
    frames, truth = frames_of(case), truth_of(case)
    f, *_ = segment_based.fscore(frames, truth, case.durations, 0.7, segment_length=1.0)
    assert_f_scores(segment_scores(*case, threshold=0.7), f)
    f, *_ = segment_based.best_fscore(frames, truth, case.durations, segment_length=1.0)
    found = segment_scores(*case)
    assert found.per_class == pytest.approx(
        {name: f[name] for name in case.classes}, abs=1e-9
    )
    _, areas = segment_auroc(*case)
    defined = {name: area for name, area in areas.items() if not np.isnan(area)}
    with np.errstate(invalid="ignore"):
        published, _ = segment_based.auroc(
            frames, truth, case.durations, segment_length=1.0, max_fpr=0.1
        )
    assert defined == pytest.approx({name: published[name] for name in defined})


def _listed(clip, events):
    """The events of a clip as sed_eval takes them."""
    rows = [
        {"event_onset": start, "event_offset": end, "event_label": label}
        for start, end, label in events
    ]
    return dcase_util.containers.MetaDataContainer(
        [row | {"filename": clip} for row in rows]
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_sed_eval(seed):
    case = drawn(seed)
    collar, share = COLLARS[seed % 2]
    metrics = [
        sed_eval.sound_event.EventBasedMetrics(
            event_label_list=case.classes,
            t_collar=collar + 1e-7,  # its comparisons allow no rounding errors
            percentage_of_length=share + 1e-7,
            event_matching_type="optimal",
        ),
        sed_eval.sound_event.SegmentBasedMetrics(
            event_label_list=case.classes, time_resolution=1.0
        ),
    ]
    for clip, truth in truth_of(case).items():
        times = frame_times(len(case.scores[clip]), case.durations[clip])
        found = events_above(case.scores[clip], 0.7, case.classes, times)
        lists = [_listed(clip, truth), _listed(clip, found)]
        metrics[0].evaluate(*lists)
        metrics[1].evaluate(*lists, evaluated_length_seconds=case.durations[clip])
    event = event_scores(
        *case, threshold=0.7, collar_seconds=collar, length_share=share
    )
    segment = segment_scores(*case, threshold=0.7)
    for each, published in zip((event, segment), metrics, strict=True):
        for name, results in published.results_class_wise_metrics().items():
            f = results["f_measure"]["f_measure"]
            assert each.per_class[name] == pytest.approx(np.nan_to_num(f), abs=1e-9)
        f = published.results_overall_metrics()["f_measure"]["f_measure"]
        assert each.micro == pytest.approx(np.nan_to_num(f), abs=1e-9)
