"""When the replica may be read: the rules, each against a plain statement of what it promises."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.edge.replica.readiness import Beat, go_on_from, matches, may_serve, reported

NUMBERS = st.integers(0, 5)
BOUNDS = st.dictionaries(NUMBERS, st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted).map(tuple), min_size=1)
HELD = st.dictionaries(NUMBERS, st.integers(0, 60))
BEATS = st.builds(Beat, st.integers(1, 3), st.integers(0, 20), st.integers(0, 20))


@given(HELD, BOUNDS)
def test_in_the_same_cluster_reading_goes_on_where_it_stood(
    held: dict[int, int], bounds: dict[int, tuple[int, int]]
) -> None:
    offsets = go_on_from(held, "a", "a", bounds)
    outside = {
        number for number in bounds if number in held and not bounds[number][0] <= held[number] <= bounds[number][1]
    }
    if outside:
        assert offsets is None
    else:
        assert offsets == {number: held.get(number, first) for number, (first, _) in bounds.items()}


@given(HELD, BOUNDS)
def test_in_another_cluster_offsets_mean_nothing(held: dict[int, int], bounds: dict[int, tuple[int, int]]) -> None:
    offsets = go_on_from(held, "a", "b", bounds)
    assert offsets == (None if held else {number: first for number, (first, _) in bounds.items()})


def test_a_new_replica_begins_at_the_start_of_each_partition() -> None:
    assert go_on_from({}, None, "a", {0: (3, 9), 1: (0, 0)}) == {0: 3, 1: 0}


def test_an_offset_at_the_very_end_is_good_and_one_beyond_it_is_not() -> None:
    assert go_on_from({0: 9}, "a", "a", {0: (0, 9)}) == {0: 9}
    assert go_on_from({0: 10}, "a", "a", {0: (0, 9)}) is None


@given(BEATS, st.integers(0, 20))
def test_a_copy_matches_when_it_holds_what_the_heartbeat_says(beat: Beat, held: int) -> None:
    assert matches(beat, held) == (beat.streams == held)


def test_without_a_heartbeat_nothing_matches() -> None:
    assert not matches(None, 0)


@given(BEATS, BEATS)
def test_a_copy_of_an_older_log_never_takes_the_place_of_one(beat: Beat, replaced: Beat) -> None:
    newer = (beat.epoch, beat.position) >= (replaced.epoch, replaced.position)
    assert matches(beat, beat.streams, at_least=replaced) == newer


@given(*[st.booleans()] * 4, st.floats(0, 10), st.floats(0.1, 10))
def test_when_the_replica_may_be_read(
    ready: bool, whole: bool, complete: bool, reachable: bool, silent: float, patience: float
) -> None:
    allowed = may_serve(
        ready=ready, whole=whole, complete=complete, reachable=reachable, silent=silent, patience=patience
    )
    if ready or whole:
        assert allowed
    elif reachable or not complete:
        assert not allowed
    else:
        assert allowed == (silent >= patience)


@given(st.dictionaries(NUMBERS, st.none() | BEATS))
def test_positions_are_told_of_the_newest_epoch_only(beats: dict[int, Beat | None]) -> None:
    epoch, positions = reported(beats)
    heard = [beat for beat in beats.values() if beat]
    assert epoch == max((beat.epoch for beat in heard), default=0)
    assert positions == {n: beat.position for n, beat in beats.items() if beat and beat.epoch == epoch}
