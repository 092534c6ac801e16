"""How well each variant answers: SQuAD's exact match and F1, and whether answers depend on who shares the run.

The stand-in at the target's shape gives the shipped checkpoint's answers at twice its width, so it is the shipped one
that is judged, unless a checkpoint was given. Every question is answered alone, and then its windows run together with
others of their length, up to eight in a run: without padding, so that nothing but company is another. The bundle is
what the exporter makes before its gate would keep matmuls in fp32; OpenVINO's model is calibrated on the same texts.
The stock recipes are those that are right on this processor.
Intervals of F1 are paired bootstraps over passages.
"""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

import numpy as np

from benchmarks import models
from benchmarks.racing.systems import KINDS, Run
from benchmarks.racing.worker import System, bundled
from benchmarks.reporting.tables import Target, table
from benchmarks.setting import Setting
from distilqa.bundle import Bundle
from distilqa.engine.base import SHARED_RUN_WINDOWS
from distilqa.engine.cores import usable_cores
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS, Evaluation
from distilqa.evaluation.progress import ProgressBar
from distilqa.reader import open_windower
from distilqa.text.arrays import Int64, Logits
from distilqa.text.spans import decode
from distilqa.text.windows import Tokenized
from distilqa_export.export import MAX_F1_DROP
from distilqa_export.gate.judge import f1_drop

FP32 = "cpu-fp32"

# By the cards of the models, on SQuAD v1.1's development set.
PUBLISHED_F1 = {"distilbert-base-uncased-distilled-squad": 86.9, "bert-base-uncased": 88.5}


class Judged(TypedDict):
    """Scores in per cent; ``lost`` are points of F1 against fp32, with their 95 % interval.

    ``moved`` answers are at another place than fp32's, ``swayed`` at another than alone.
    """

    exact_match: float
    f1: float
    lost: dict[str, float]
    moved: int
    swayed: int
    answers: list[list[int]]


class Quality(TypedDict):
    checkpoint: str
    questions: str
    asked: int
    judged: dict[str, Judged]
    bert: dict[str, dict[str, float]]


def prepare(setting: Setting) -> None:
    """Make the models."""
    _systems(_judged_checkpoint(setting))
    if setting.bert:
        models.calibrated_bundle(setting.bert_checkpoint)


def _judged_checkpoint(setting: Setting) -> Path:
    return setting.distilbert_checkpoint if setting.distilbert else models.CHECKPOINT


def measure(setting: Setting) -> Quality:
    checkpoint, questions = _judged_checkpoint(setting), setting.questions
    found: dict[str, Judged] = {}
    fp32: Evaluation | None = None
    for name, system in _systems(checkpoint).items():
        alone, together = _answer(name, models.calibrated_bundle(checkpoint), system, questions)
        fp32 = fp32 or alone  # which comes first
        found[name] = Judged(
            exact_match=alone.exact_match,
            f1=alone.f1,
            lost=asdict(f1_drop(fp32, alone)),
            moved=differ(alone, fp32),
            swayed=differ(alone, together),
            answers=[list(place) for place in places(alone)],
        )
    bert = {}
    if setting.bert:
        bundle = models.calibrated_bundle(setting.bert_checkpoint)
        for name, system in bundled(bundle).items():
            judged = _answer(f"bert-base, {name}", bundle, system, questions)[0]
            bert[name] = {"exact_match": judged.exact_match, "f1": judged.f1}
    return Quality(
        checkpoint=setting.distilbert or checkpoint.name,
        questions=setting.squad.name if setting.squad else "of those packaged from SQuAD v1.1's development set",
        asked=len(questions),
        judged=found,
        bert=bert,
    )


def _systems(checkpoint: Path) -> dict[str, System]:
    """fp32 comes first: the others are compared with it."""
    variants = bundled(models.calibrated_bundle(checkpoint))
    return {FP32: variants.pop(FP32)} | variants | {
        "optimum int8": System("onnxruntime", models.optimum_int8(checkpoint)),
        "ONNX Runtime int8": System("onnxruntime", models.onnxruntime_int8(checkpoint)),
        "OpenVINO int8": System("openvino", models.calibrated_openvino_int8(checkpoint)),
        "OpenVINO int8, rest fp32": System("openvino_fp32", models.calibrated_openvino_int8(checkpoint)),
    }  # fmt: skip


def _answer(name: str, bundle: Path, system: System, questions: Sequence[Question]) -> tuple[Evaluation, Evaluation]:
    """What a system answers alone, and in company."""
    windower = open_windower(Bundle.open(bundle))
    tokenized = [windower.tokenize(one.question, [one.context]) for one in questions]
    runs = [KINDS[system.kind](system.path, 1) for _ in range(usable_cores())]  # not all can be run twice at once
    with ProgressBar(name, 2, sys.stderr) as progress:
        found = []
        for shared in (1, SHARED_RUN_WINDOWS):
            logits = logits_in_runs(runs, tokenized, shared)
            answers = [
                decode(one, values, max_answer_tokens=MAX_ANSWER_TOKENS)[0]
                for one, values in zip(tokenized, logits, strict=True)
            ]
            found.append(Evaluation(questions, answers, 0.0))
            progress(len(found))
    return found[0], found[1]


def logits_in_runs(runs: Sequence[Run], tokenized: Sequence[Tokenized], shared: int) -> list[list[Logits]]:
    """The logits of each window of each text, run together with up to ``shared`` windows of its length.

    As many runs are under way as there are of ``runs``, each of which does one at a time.
    """
    by_length: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, one in enumerate(tokenized):
        for place, window in enumerate(one.windows):
            by_length[window.length].append((number, place))
    batches = [
        windows[begin : begin + shared] for windows in by_length.values() for begin in range(0, len(windows), shared)
    ]
    found: dict[tuple[int, int], Logits] = {}

    stopped = threading.Event()  # by Ctrl-C, which does not end threads

    def work(run: Run, own: Sequence[Sequence[tuple[int, int]]]) -> None:
        for batch in own:
            if stopped.is_set():
                return
            ids: Int64 = np.stack([tokenized[number].windows[place].input_ids for number, place in batch])
            start, end = run(ids)
            found.update(zip(batch, zip(start, end, strict=True), strict=True))

    with ThreadPoolExecutor(len(runs)) as pool:
        shares = [batches[number :: len(runs)] for number in range(len(runs))]
        try:
            list(pool.map(work, runs, shares))
        finally:
            stopped.set()
    return [[found[number, place] for place in range(len(one.windows))] for number, one in enumerate(tokenized)]


def differ(one: Evaluation, other: Evaluation) -> int:
    """How many answers are at other places."""
    return sum(a != b for a, b in zip(places(one), places(other), strict=True))


def places(found: Evaluation) -> list[tuple[int, int]]:
    return [(answer.start, answer.end) for answer in found.answers]


def targets(found: Quality) -> list[Target]:
    """What is promised of cpu-int8's answers."""
    released, asked = found["judged"]["cpu-int8"], found["asked"]
    return [
        Target(
            "answers of cpu-int8 that company changes",
            f"{released['swayed']} of {asked:,}",
            "0",
            not released["swayed"],
        ),
        lost_target("cpu-int8", released["lost"]),
    ]


def headline(found: Quality) -> str:
    """What is most worth knowing, in a line."""
    released, asked = found["judged"]["cpu-int8"], found["asked"]
    others = [one["swayed"] / asked for name, one in found["judged"].items() if name not in (FP32, "cpu-int8")]
    return (
        f"Of {asked:,} questions cpu-int8 loses {lost_interval(released['lost'])} points of F1 and answers"
        f" {released['moved'] / asked:.1%} elsewhere; company changes {released['swayed']:,} of its answers, and up to"
        f" {max(others, default=0):.1%} of other int8 models'."
    )


def lost_target(variant: str, lost: Mapping[str, float]) -> Target:
    """What a variant may lose of fp32's F1: met or missed only where all of the interval is on one side of it."""
    met = True if lost["high"] <= MAX_F1_DROP else None if lost["low"] <= MAX_F1_DROP else False
    measure = f"points of F1 that {variant} loses (95 % interval)"
    return Target(measure, lost_interval(lost), f"at most {MAX_F1_DROP:g}", met)


def report(found: Quality) -> str:
    """Markdown: a row a system, and what is published."""
    asked = found["asked"]
    rows = []
    for name, one in found["judged"].items():
        scores = [f"{one['exact_match']:.2f}", f"{one['f1']:.2f}"]
        against = ["", ""] if name == FP32 else [lost_interval(one["lost"]), f"{one['moved'] / asked:.1%}"]
        rows.append([name, *scores, *against, f"{one['swayed'] / asked:.1%}"])
    for name, bert in found["bert"].items():
        rows.append([f"bert-base, {name}", f"{bert['exact_match']:.2f}", f"{bert['f1']:.2f}", "", "", ""])
    rows += [[f"{name}, fp32, as published", "", f"{f1:.1f}", "", "", ""] for name, f1 in PUBLISHED_F1.items()]
    head = [
        found["checkpoint"],
        "exact match",
        "F1",
        "F1 lost (95 % interval)",
        "elsewhere than fp32's",
        "changed by company",
    ]
    return f"{asked:,} questions ({found['questions']}).\n\n{table(head, rows)}"


def lost_interval(lost: Mapping[str, float]) -> str:
    return f"{lost['points']:.2f} ({lost['low']:.2f} to {lost['high']:.2f})"
