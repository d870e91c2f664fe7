from __future__ import annotations

import numpy as np
import pytest

from hilora import lexical_pool
from hilora.character_grams import NUM_GRAMS, SampleGrams, gram_ids
from hilora.lexical_pool import LexicalPool

TEXTS = [
    ["Translate to French: the cat sleeps", "Translate to French: my house is red", "Translate to French: we eat"],
    ["Is this review positive? I loved it", "Is this review positive? Never again", "Is this review positive? So so"],
    ["Sum up: 12 + 31", "Sum up: 4 + 5 + 6", "Sum up: 100 + 1"],
    ["Sum up the story: once upon a time", "Sum up the story: it was night", "Sum up the story: a fox came"],
]


def fit(texts: list[list[str] | None]) -> LexicalPool:
    grams = [None if own is None else SampleGrams.of(own) for own in texts]
    return LexicalPool.fit([None if own is None else own.counts() for own in grams])


def everybody(pool: LexicalPool, text: str) -> np.ndarray:
    return pool.scores(gram_ids(text), np.arange(len(pool)))


def by_the_equations(texts: list[list[str]], text: str) -> np.ndarray:
    """The module's docstring in dense vectors."""
    counts_LG = np.zeros((len(texts), NUM_GRAMS))
    for place, own in enumerate(texts):
        for sample in own:
            counts_LG[place, gram_ids(sample)] += 1.0
    weights_G = 1.0 + np.log((1.0 + len(texts)) / (1.0 + (counts_LG > 0).sum(axis=0)))
    vectors_LG = counts_LG * weights_G
    vectors_LG /= np.linalg.norm(vectors_LG, axis=1, keepdims=True)
    common_G = vectors_LG.sum(axis=0) / np.linalg.norm(vectors_LG.sum(axis=0))
    own_LG = vectors_LG - (vectors_LG @ common_G)[:, None] * common_G
    own_LG /= np.linalg.norm(own_LG, axis=1, keepdims=True)
    query_G = np.zeros(NUM_GRAMS)
    query_G[gram_ids(text)] = weights_G[gram_ids(text)]
    return own_LG @ query_G / np.sqrt(np.linalg.norm(query_G))


@pytest.mark.parametrize("text", ["Translate to French: a dog", "Sum up: 7 + 8", "something else", "x"])
def test_scores_are_those_of_the_equations(text):
    assert everybody(fit([*TEXTS]), text) == pytest.approx(by_the_equations(TEXTS, text), abs=2e-5)


@pytest.mark.parametrize(
    ("text", "place"),
    [("Translate to French: a dog", 0), ("Is this review positive? Boring", 1), ("Sum up: 7 + 8", 2)],
)
def test_a_text_belongs_to_whom_it_is_worded_like(text, place):
    assert everybody(fit([*TEXTS]), text).argmax() == place


def test_what_is_common_to_all_says_nothing():
    frame = "Please answer the following question as well as you can. {} Think before you answer."
    pool = fit([[frame.format(text) for text in own] for own in TEXTS])
    scores = everybody(pool, frame.format(""))
    alone = everybody(pool, frame.format("Translate to French: a dog"))
    assert np.ptp(scores) < 0.25 * np.ptp(alone)


def test_the_order_of_the_pool_makes_no_difference():
    order = [2, 0, 3, 1]
    there = everybody(fit([TEXTS[place] for place in order]), "Sum up: 7 + 8")
    assert there == pytest.approx(everybody(fit([*TEXTS]), "Sum up: 7 + 8")[order], abs=1e-5)


def test_an_adapter_of_unknown_texts_is_neither_helped_nor_harmed():
    scores = everybody(fit([*TEXTS, None]), "Sum up: 7 + 8")
    assert scores[4] == 0.0
    assert scores[:4] == pytest.approx(by_the_equations(TEXTS, "Sum up: 7 + 8"), abs=2e-5)


def test_an_empty_text_says_nothing():
    assert everybody(fit([*TEXTS]), " ").tolist() == [0.0] * 4


def test_some_adapters_are_scored_without_the_others():
    pool = fit([*TEXTS])
    some = pool.scores(gram_ids("Sum up: 7"), np.array([3, 1]))
    assert some.tolist() == everybody(pool, "Sum up: 7")[[3, 1]].tolist()


def test_a_newcomer_stands_after_the_others_under_their_weights():
    pool = fit([*TEXTS])
    more = pool.extended([SampleGrams.of(["Write a poem about rain", "Write a poem about sand"]), None])
    assert len(more) == 6
    assert more.rows is pool.rows
    text = "Write a poem about the sea"
    assert everybody(more, text).argmax() == 4
    assert everybody(more, text)[5] == 0.0
    assert everybody(more, text)[:4] == pytest.approx(everybody(pool, text), abs=1e-6)
    # In any order of asking.
    places = np.array([5, 0, 4])
    assert more.scores(gram_ids(text), places).tolist() == everybody(more, text)[places].tolist()
    assert len(more.extended([SampleGrams.of(TEXTS[2])])) == 5
    # The same texts again score what they score among the fitted.
    twin = pool.extended([SampleGrams.of(TEXTS[2])])
    assert everybody(twin, text)[4] == pytest.approx(everybody(pool, text)[2], abs=1e-6)


def test_two_adapters_of_the_same_samples_do_not_divide_by_zero():
    scores = everybody(fit([TEXTS[0], TEXTS[0]]), "Translate to French: a dog")
    assert np.isfinite(scores).all()
    assert scores[0] == scores[1]


def test_no_more_than_the_weightiest_grams_are_kept(monkeypatch):
    monkeypatch.setattr(lexical_pool, "MAX_KEPT_GRAMS", 40)
    pool = fit([*TEXTS])
    assert pool.rows.ids_LW.shape == (4, 40)
    kept = set(pool.rows.ids_LW[0].tolist())
    # What all of its samples have goes before what one has.
    ids, numbers = SampleGrams.of(TEXTS[0]).counts()
    weight = numbers * pool.weights_G[ids]
    assert min(weight[np.isin(ids, list(kept))]) >= max(weight[~np.isin(ids, list(kept))])
    assert everybody(pool, "Translate to French: a dog").argmax() == 0


def test_more_samples_than_a_byte_can_count_are_counted_in_proportion():
    many = fit([own * 200 for own in TEXTS])
    text = "Sum up: 7 + 8"
    assert everybody(many, text) == pytest.approx(everybody(fit([*TEXTS]), text), abs=0.05)
