"""Makes ``answers.jsonl``: what the reference pipeline answers on the shipped checkpoint.

``python -m tests.golden.generate dev-v1.1.json`` chooses questions from SQuAD's development set and asks them and the
texts of ``texts.py``; without a file it asks again the questions that answers.jsonl already has. It takes minutes.
The reference is the question-answering pipeline of one version of transformers, in fp32 on the CPU; any other version
is refused. Nothing of the product takes part: neither its tokenisation nor its decoding.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tests.golden import goldens, texts
from tests.golden.goldens import Golden, Part, Reference
from transformers.pipelines.question_answering import QuestionAnsweringPipeline, select_starts_ends

VERSION = "4.57.6"
CHECKPOINT = Path(__file__).parents[2] / "models" / "distilbert-384-squad"
FILES = ("config.json", "model.safetensors", "tokenizer.json")

# The product's defaults in the reference's words, but three answers instead of one.
OPTIONS = {"top_k": 3, "max_answer_len": 15, "doc_stride": 128, "max_seq_len": 384}

_SEED = 0
_PASSAGES_AN_ARTICLE = 5
_QUESTIONS_A_PASSAGE = 3

# What the pipeline itself looks at before it merges answers and cuts them to top_k.
_CANDIDATES = 2 * OPTIONS["top_k"] + 10

# More than this is below a float32's precision and would change with the machine.
_DIGITS = 6

# Kind, name, question, passage.
_Asked = tuple[str, str, str, str]


class Explained(QuestionAnsweringPipeline):  # type: ignore[misc]  # transformers is untyped
    """The pipeline, which also says what it merged: its answers are followed by all it had before."""

    def postprocess(self, model_outputs: Any, **options: Any) -> Any:
        outputs = list(model_outputs)
        return super().postprocess(outputs, **options), [part for output in outputs for part in self._parts(output)]

    def _parts(self, output: dict[str, Any]) -> Iterator[Part]:
        starts, ends, scores, _ = select_starts_ends(
            output["start"],
            output["end"],
            output["p_mask"],
            output["attention_mask"].numpy(),
            top_k=_CANDIDATES,
            max_answer_len=OPTIONS["max_answer_len"],
        )
        for first, last, score in zip(starts, ends, scores.tolist(), strict=True):
            if score == 0.0:  # masked out: there were not so many candidates
                continue
            start, end = self.get_indices(output["encoding"], first, last, sequence_index=1, align_to_words=True)
            yield Part(start, end, score)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.golden.generate", description="Make answers.jsonl.")
    parser.add_argument("squad", nargs="?", type=Path, metavar="DEV-V1.1.JSON", help="choose the questions anew")
    squad = parser.parse_args(arguments).squad
    if transformers.__version__ != VERSION:
        sys.exit(f"The reference is transformers {VERSION}; installed is {transformers.__version__}.")
    pipeline = open_pipeline()
    dev = list(choose(squad, pipeline.tokenizer)) if squad else again()
    goldens.save(header(), [ask(pipeline, *asked) for asked in (*dev, *by_hand())])


def open_pipeline() -> Explained:
    model = transformers.DistilBertForQuestionAnswering.from_pretrained(
        CHECKPOINT, local_files_only=True, dtype=torch.float32
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(CHECKPOINT, local_files_only=True)
    return Explained(model=model.eval(), tokenizer=tokenizer, device="cpu")


def header() -> dict[str, Any]:
    return {
        "reference": f"transformers {VERSION} question-answering",
        "options": OPTIONS,
        "checkpoint": CHECKPOINT.name,
        "sha256": digests(CHECKPOINT),
        "dev": "from SQuAD v1.1, CC BY-SA 4.0 (see NOTICE)",
    }


def digests(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of the checkpoint's files on which answers depend."""
    return {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in FILES}


def choose(squad: Path, tokenizer: Any) -> Iterator[_Asked]:
    """Some questions of some passages of every article, as far as they fit one window."""
    generator = random.Random(_SEED)
    for article in json.loads(squad.read_text(encoding="utf-8"))["data"]:
        for passage in generator.sample(article["paragraphs"], _PASSAGES_AN_ARTICLE):
            questions = passage["qas"]
            for asked in generator.sample(questions, min(_QUESTIONS_A_PASSAGE, len(questions))):
                if len(tokenizer(asked["question"], passage["context"]).input_ids) <= OPTIONS["max_seq_len"]:
                    yield goldens.DEV, asked["id"], asked["question"], passage["context"]


def again() -> list[_Asked]:
    """The questions of the development set that were asked before."""
    return [(g.kind, g.name, g.question, g.context) for g in goldens.load()[1] if g.kind == goldens.DEV]


def by_hand() -> Iterator[_Asked]:
    for kind, table in ((goldens.AWKWARD, texts.AWKWARD), (goldens.DIFFERENT, texts.DIFFERENT)):
        for name, text in table.items():
            yield kind, name, *text


def ask(pipeline: Explained, kind: str, name: str, question: str, context: str) -> Golden:
    found, parts = pipeline(question=question, context=context, **OPTIONS)
    answers = found if isinstance(found, list) else [found]  # a single answer comes without its list
    alone = None
    if kind == goldens.DIFFERENT:
        (best, _) = pipeline(question=question, context=context, **(OPTIONS | {"top_k": 1}))
        alone = round(best["score"], _DIGITS)
    return Golden(kind, name, question, context, tuple(explain(answer, parts, context) for answer in answers), alone)


def explain(answer: dict[str, Any], parts: Sequence[Part], context: str) -> Reference:
    """An answer with its parts: those of equal text, whatever their case."""
    text, start, end, score = (answer[key] for key in ("answer", "start", "end", "score"))
    merged = [part for part in parts if context[part.start : part.end].lower() == text.lower()]
    if not math.isclose(sum(part.score for part in merged), score, rel_tol=1e-6, abs_tol=1e-9):
        raise AssertionError(f"{text!r} scores {score}, its parts {merged}")
    rounded = tuple(part._replace(score=round(part.score, _DIGITS)) for part in merged)
    return Reference(text, start, end, round(score, _DIGITS), rounded)


if __name__ == "__main__":
    main()
