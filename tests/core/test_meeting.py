"""Processes of one launch meet in a store that was used before, whatever torchrun tells them of how often they were started."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from time import sleep
from typing import Any

import pytest
from torch.distributed import HashStore, TCPStore

from jepakit.core import meeting
from jepakit.core.meeting import Heartbeats, killed, met

SECOND = timedelta(seconds=20)


def test_each_start_has_a_part_of_the_store_of_its_own() -> None:
    """Also where the first process calls the roll while another's place still bears the name of one that was killed."""
    store, ranks = HashStore(), range(3)

    def late(rank: int) -> str:
        sleep(0.15 * rank)
        part = met(store, rank, len(ranks), SECOND)
        part.set(f"from{rank}", f"{rank}")
        return str([part.get(f"from{other}") for other in ranks])

    for _ in range(3):
        before = store.num_keys()
        with ThreadPoolExecutor(len(ranks)) as pool:
            assert [*pool.map(late, ranks)] == ["[b'0', b'1', b'2']"] * 3
        assert store.num_keys() >= before + len(ranks)  # nothing was found that an earlier start left


def test_those_who_do_not_come_are_named() -> None:
    store = HashStore()
    with ThreadPoolExecutor(2) as pool:
        [*pool.map(lambda rank: met(store, rank, 2, SECOND), (0, 1))]
    with pytest.raises(TimeoutError, match=r"of 2 processes these did not come within 0:00:01: rank 1$"):
        met(store, 0, 2, timedelta(seconds=1))


def group(size: int, seconds: float) -> list[Heartbeats]:
    store = HashStore()
    return [Heartbeats(store, rank, size, seconds) for rank in range(size)]


def test_who_lives_is_waited_for_and_who_is_silent_is_found_by_all_who_wait() -> None:
    """Rank 0 works for longer than one may be silent; then rank 1 does not beat, as a process that is stopped."""
    beats = group(3, 0.5)

    def late(rank: int) -> list[int]:
        sleep(0 if rank else 1.2)
        return beats[rank].meet()

    with ThreadPoolExecutor(3) as pool:
        assert [*pool.map(late, range(3))] == [[], [], []]
        beats[1].end()
        assert [*pool.map(late, (0, 2))] == [[1], [1]]
    for each in beats:
        each.end()


def test_who_never_began_is_found_too_while_others_go_on_to_be_heard() -> None:
    """As one that is stopped once all were met, and before its first beat."""
    store = HashStore()
    beats = [Heartbeats(store, rank, 3, 1.0) for rank in (0, 2)]
    with ThreadPoolExecutor(2) as pool:
        assert [*pool.map(Heartbeats.meet, beats)] == [[1], [1]]
    assert killed(store, [1]) == "rank 1 ended or hangs"
    for each in beats:
        each.end()


def test_who_came_and_was_stopped_while_it_waited_is_found() -> None:
    beats = group(2, 0.5)
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(beats[1].meet)
        beats[1].end()
        sleep(1.2)  # rank 0 is at work
        assert beats[0].meet() == [1]
        waits.result()
    beats[0].end()


def test_nothing_is_printed_while_one_is_waited_for(capfd: pytest.CaptureFixture[str]) -> None:
    """Torch's own store warns of each wait that ends in vain, by lines to standard error."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False, timeout=SECOND)
    beats = [Heartbeats(store.clone(), rank, 2, 2.0) for rank in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        waits = pool.submit(beats[0].meet)
        sleep(0.3)
        assert beats[1].meet() == [] == waits.result()
    for each in beats:
        each.end()
    assert capfd.readouterr() == ("", "")


def test_who_ends_is_not_waited_for_and_silence_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """At once, not when it was silent for long enough."""
    monkeypatch.setattr(meeting, "_SECONDS_OF_A_BEAT", 0.05)
    beats, told = group(2, 3600.0), list[Any]()
    beats[0].tell = told.append
    beats[1].end(broken=True)
    assert beats[0].meet() == [1] and beats[0].meet() == [1]
    beats[0].end()
    assert told == [[1]]
