"""BERT's segments are the tokenizer's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from distilqa.engine.segments import token_types
from distilqa.text.windows import Windower


@pytest.fixture(scope="module")
def windower(tokenizer_json: str) -> Windower:
    return Windower(tokenizer_json, max_tokens=384)


TEXTS = st.lists(st.sampled_from(("fox", "jumps", "é", "東", "[CLS]", "?")), min_size=1, max_size=8).map(" ".join)


@given(question=TEXTS, passages=st.lists(TEXTS | st.just("a [SEP] b [SEP]"), min_size=1, max_size=3))
def test_token_types_are_the_tokenizers(
    windower: Windower, tokenizer: Tokenizer, question: str, passages: list[str]
) -> None:
    windows = windower.tokenize(question, passages).windows
    assume(len({window.length for window in windows}) == 1)
    types = token_types(np.stack([window.input_ids for window in windows]))
    assert types.dtype == np.int64
    assert types.tolist() == [tokenizer.encode(question, passage).type_ids for passage in passages]


def test_token_types_of_a_question_that_quotes_a_separator(windower: Windower, tokenizer: Tokenizer) -> None:
    question, passage = "What does [SEP] mean?", "The token [SEP] separates."
    (window,) = windower.tokenize(question, [passage]).windows
    assert token_types(window.input_ids[None]).tolist() == [tokenizer.encode(question, passage).type_ids]
