"""What fp16 on a GPU does to the answers: exact match and F1 beside fp32's, and whether company changes them.

fp32 is the same bundle's, on the CPU, each window alone. A GPU's kernels sum in another order in runs of another size,
so that what company changes is measured: every window is run alone, and then packed with others of any lengths, from
two up to what the server's runs have room for, drawn anew for each mix, while the other lane is as busy.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TypedDict

from benchmarks.gpu.setting import GpuSetting
from benchmarks.parts.quality import differ, lost_interval, lost_target, places
from benchmarks.racing.child import in_child
from benchmarks.reporting.tables import Target, table
from distilqa.bundle import GPU_VARIANTS, Bundle
from distilqa.engine.base import Engine
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.cuda.budget import OBJECTIVE_S
from distilqa.engine.cuda.engine import CudaEngine
from distilqa.evaluation.dataset import Question
from distilqa.evaluation.evaluate import MAX_ANSWER_TOKENS, Evaluation
from distilqa.evaluation.progress import ProgressBar
from distilqa.reader import open_windower
from distilqa.text.arrays import Logits
from distilqa.text.spans import decode
from distilqa.text.windows import Tokenized
from distilqa_export.gate.judge import f1_drop

FP32, (CUDA,) = "cpu-fp32", GPU_VARIANTS

MIXES = 3

# The largest share of the answers that company may change.
SWAYED = 0.001

# A window, by the number of its question and its own.
Place = tuple[int, int]


class Scores(TypedDict):
    """In per cent; ``answers`` are where they start and end."""

    exact_match: float
    f1: float
    answers: list[list[int]]


class Answers(TypedDict):
    """``lost`` are points of F1 against fp32, with their 95 % interval.

    ``moved`` answers are at another place than fp32's, ``swayed``, by mix, at another than alone.
    """

    questions: str
    asked: int
    scores: dict[str, Scores]
    lost: dict[str, float]
    moved: int
    swayed: list[int]


def prepare(setting: GpuSetting) -> None:
    """Make the model."""
    _ = setting.bundle


def measure(setting: GpuSetting) -> Answers:
    questions = setting.questions
    fp32 = in_child(answer_fp32, setting.bundle, questions)
    alone, *mixed = in_child(answer_cuda, setting.bundle, questions)
    return Answers(
        questions=setting.squad.name if setting.squad else "of those packaged from SQuAD v1.1's development set",
        asked=len(questions),
        scores={
            name: Scores(exact_match=one.exact_match, f1=one.f1, answers=[list(place) for place in places(one)])
            for name, one in ((FP32, fp32), (CUDA, alone))
        },
        lost=asdict(f1_drop(fp32, alone)),
        moved=differ(alone, fp32),
        swayed=[differ(alone, one) for one in mixed],
    )


def answer_fp32(bundle: Path, questions: Sequence[Question]) -> Evaluation:
    tokenized = tokenize(bundle, questions)
    return answer(CpuEngine(Bundle.open(bundle), FP32, concurrent=True), questions, tokenized, alone(tokenized))


def answer_cuda(bundle: Path, questions: Sequence[Question]) -> list[Evaluation]:
    """Alone, and then in each mix."""
    engine, tokenized = CudaEngine(Bundle.open(bundle), CUDA, objective_s=OBJECTIVE_S), tokenize(bundle, questions)
    assert engine.budget is not None
    mixes = [mix(tokenized, engine.budget, seed) for seed in range(MIXES)]
    return [answer(engine, questions, tokenized, runs) for runs in (alone(tokenized), *mixes)]


def tokenize(bundle: Path, questions: Sequence[Question]) -> list[Tokenized]:
    windower = open_windower(Bundle.open(bundle))
    return [windower.tokenize(one.question, [one.context]) for one in questions]


def alone(tokenized: Sequence[Tokenized]) -> list[list[Place]]:
    """Runs of one window each."""
    return [[(number, own)] for number, one in enumerate(tokenized) for own in range(len(one.windows))]


def mix(tokenized: Sequence[Tokenized], budget: int, seed: int) -> list[list[Place]]:
    """Runs of windows in random order and number, from two up to what a budget of tokens has room for."""
    chance = random.Random(seed)
    left = [place for run in alone(tokenized) for place in run]
    chance.shuffle(left)
    runs = []
    while left:
        most = max(2, budget // max(tokenized[number].windows[own].length for number, own in left))
        count = chance.randint(2, most)
        runs.append(left[:count])
        left = left[count:]
    return runs


def answer(
    engine: Engine, questions: Sequence[Question], tokenized: Sequence[Tokenized], runs: Sequence[Sequence[Place]]
) -> Evaluation:
    """What an engine answers in those runs, as many at once as it has lanes."""
    found: dict[Place, Logits] = {}

    def run(places: Sequence[Place]) -> None:
        windows = [tokenized[number].windows[own].input_ids for number, own in places]
        found.update(zip(places, engine.run(windows), strict=True))

    with ThreadPoolExecutor(engine.lanes) as pool, ProgressBar(engine.variant, len(runs), sys.stderr) as progress:
        for done, _ in enumerate(pool.map(run, runs), start=1):
            progress(done)
    logits = [[found[number, own] for own in range(len(one.windows))] for number, one in enumerate(tokenized)]
    answers = [
        decode(one, values, max_answer_tokens=MAX_ANSWER_TOKENS)[0]
        for one, values in zip(tokenized, logits, strict=True)
    ]
    return Evaluation(questions, answers, 0.0)


def targets(found: Answers) -> list[Target]:
    """What is promised of the answers on a GPU. One of too few would be more than may change."""
    share = _share(found)
    met = None if found["asked"] * SWAYED < 1 else share <= SWAYED
    measure = f"answers of {CUDA} that company changes"
    return [Target(measure, f"{share:.2%}", f"at most {SWAYED:.1%}", met), lost_target(CUDA, found["lost"])]


def _share(found: Answers) -> float:
    """Of all mixes."""
    return sum(found["swayed"]) / (found["asked"] * len(found["swayed"]))


def report(found: Answers) -> str:
    """Markdown: a row a variant."""
    rows = []
    for name, one in found["scores"].items():
        moved = ["", "", ""]
        if name == CUDA:
            moved = [lost_interval(found["lost"]), f"{found['moved'] / found['asked']:.2%}", f"{_share(found):.2%}"]
        rows.append([name, f"{one['exact_match']:.2f}", f"{one['f1']:.2f}", *moved])
    head = ["", "exact match", "F1", "F1 lost (95 % interval)", "elsewhere than fp32's", "changed by company"]
    mixes = ", ".join(f"{count}" for count in found["swayed"])
    told = f"{found['asked']:,} questions ({found['questions']}); of each mix, company changed {mixes} answers."
    return f"{told}\n\n{table(head, rows)}"
