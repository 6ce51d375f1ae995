"""The reading order is OLMo's, is a permutation with an inverse, and mixes at exact proportions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loom.errors import LoomError
from loom.tokens.order import (
    EpochOrder,
    Extent,
    Interleave,
    ReadingOrder,
    Stage,
    places_of_step,
    step_of_place,
)


def test_goldens_of_olmo() -> None:
    # Made with OLMo's IterableDataset: seed 6198, epoch 0.
    order = EpochOrder(20, 6198)
    assert order.at(np.arange(20)).tolist() == [
        17,
        4,
        14,
        3,
        5,
        12,
        6,
        15,
        18,
        13,
        10,
        11,
        2,
        19,
        0,
        16,
        7,
        9,
        8,
        1,
    ]
    assert EpochOrder(1000, 6198).at(np.arange(8)).tolist() == [615, 832, 881, 9, 648, 523, 809, 336]


@given(st.integers(1, 3000), st.integers(0, 2**31), st.sampled_from(["olmo", "constant-memory"]))
@settings(max_examples=60, deadline=None)
def test_every_epoch_reads_everything_once_and_has_an_inverse(size: int, seed: int, kind) -> None:
    order = EpochOrder(size, seed, kind)
    places = np.arange(2 * size)
    read = order.at(places)
    for epoch in (0, 1):
        part = read[epoch * size : (epoch + 1) * size]
        assert np.array_equal(np.sort(part), np.arange(size))
        assert np.array_equal(order.place_of(part, epoch), places[epoch * size : (epoch + 1) * size])


def test_constant_memory_order_reaches_far() -> None:
    order = EpochOrder(10**12, 1, "constant-memory")
    places = np.array([0, 1, 2, 10**12 - 1])
    read = order.at(places)
    assert len(set(read.tolist())) == 4 and read.max() < 10**12
    assert np.array_equal(order.place_of(read), places)
    first = EpochOrder(10**6, 1, "constant-memory").at(np.arange(1000))
    assert abs(first.mean() / 5e5 - 1) < 0.1 and np.abs(np.diff(first)).mean() > 1e5


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_mixtures_are_exact_and_invertible(weights: list[float]) -> None:
    mix = Interleave(weights)
    places = np.arange(5000)
    sources, ranks = mix.split(places)
    for source, weight in enumerate(weights):
        mine = sources == source
        counts = np.cumsum(mine)
        assert np.array_equal(ranks[mine], np.arange(mine.sum()))
        assert np.array_equal(mix.place_of(source, ranks[mine]), places[mine])
        assert np.abs(counts - (places + 1) * weight / sum(weights)).max() < len(weights)


def test_one_source_in_a_mixture_is_plain() -> None:
    lone = ReadingOrder([Extent("d", "p", (100, 57))], 5, 6198)
    assert lone.instances == 31
    _, indices = lone.at(0, 31)
    assert np.array_equal(indices, EpochOrder(31, 6198).at(np.arange(31)))


def test_instances_never_span_shards_and_are_found_again() -> None:
    order = ReadingOrder([Extent("a", "a", (23, 4, 12), 1.0), Extent("b", "b", (50,), 3.0)], 5, 1)
    sources, indices = order.at(0, 400)
    assert abs((sources == 1).sum() - 300) <= 1
    for place, (source, index) in enumerate(zip(sources.tolist(), indices.tolist(), strict=True)):
        shard, token = order.locate(source, index)
        assert token + 5 <= order.extents[source].shard_tokens[shard]
        assert order.instance_of(source, shard, token + 4) == index
        epoch = int((sources[:place] == source).sum()) // order.orders[source].size
        assert order.place_of(source, index, epoch) == place
    assert order.instance_of(0, 0, 22) is None
    with pytest.raises(LoomError, match="sequence_length"):
        ReadingOrder([Extent("a", "a", (4, 4))], 5, 1)


def test_fingerprint_follows_everything_the_order_depends_on() -> None:
    def of(digest="a", tokens=(100,), weight=1.0, length=5, seed=1, kind="olmo") -> str:
        return ReadingOrder([Extent(digest, "p", tokens, weight)], length, seed, kind).fingerprint

    changed = [
        of(digest="b"),
        of(tokens=(101,)),
        of(length=4),
        of(seed=2),
        of(kind="constant-memory"),
        of(weight=2.0),
    ]
    assert of() == of() and of() not in changed and len(set(changed)) == len(changed)


def test_steps_and_places_are_inverse_through_a_change_of_batch() -> None:
    stages = [Stage(1, 0, 4), Stage(11, 40, 8), Stage(21, 120, 2)]
    assert places_of_step(stages, 1) == (0, 4) and places_of_step(stages, 11) == (40, 48)
    assert places_of_step(stages, 25) == (128, 130)
    for step in range(1, 40):
        first, last = places_of_step(stages, step)
        assert all(step_of_place(stages, place) == step for place in range(first, last))
