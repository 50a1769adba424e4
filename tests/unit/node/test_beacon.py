"""Deaf, down, or fine: the table of the beacon."""

from __future__ import annotations

from bongsu.node.beacon import PATIENCE, Beacon, Beat, Health


def beat(replica: str, *hears: str, clients: int = 0) -> Beat:
    return Beat(replica, clients, 0.0, "0", list(hears))


def leases(*beats: Beat) -> dict[str, Beat]:
    return {beat.replica: beat for beat in beats}


def test_a_replica_that_hears_its_own_beacon_is_ready() -> None:
    beacon = Beacon("a", now=0)
    assert beacon.judge(now=0) is Health.STARTING
    assert beacon.judge(now=PATIENCE + 1) is Health.BROKER_DOWN
    beacon.renewed(leases(beat("a")), now=0)
    assert beacon.judge(now=1) is Health.STARTING
    beacon.heard(beat("a"), now=1)
    assert beacon.judge(now=1 + PATIENCE) is Health.READY


def test_failing_commands_mean_the_broker_is_down_even_when_beacons_were_heard_just_now() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a")), now=0)
    beacon.heard(beat("a"), now=0)
    beacon.not_renewed()
    assert beacon.judge(now=0.1) is Health.BROKER_DOWN


def test_after_a_broker_that_was_away_for_a_moment_hearing_is_proved_anew() -> None:
    """Ready by what it had heard before, a replica refused to subscribe anybody."""
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a")), now=0)
    beacon.heard(beat("a"), now=0)
    beacon.not_renewed()
    beacon.renewed(leases(beat("a")), now=1)
    assert beacon.judge(now=1) is Health.STARTING
    beacon.heard(beat("a"), now=1.1)
    assert beacon.judge(now=1.1) is Health.READY


def test_silence_while_the_others_hear_each_other_is_deafness() -> None:
    beacon = Beacon("a", now=0)
    others = leases(beat("a"), beat("b", "b", "c"), beat("c", "b", "c"))
    for second in range(int(PATIENCE) + 1):
        beacon.renewed(others, now=second)
    assert beacon.judge(now=PATIENCE) is Health.STARTING
    assert beacon.judge(now=PATIENCE + 1) is Health.DEAF


def test_while_a_renewal_is_not_answered_leases_prove_nothing() -> None:
    """Redis hung: what the leases had said made deaf of every replica at once, and handshakes found none."""
    beacon = Beacon("a", now=0)
    others = leases(beat("a", "a", "b"), beat("b", "a", "b"))
    for second in range(11):
        beacon.renewed(others, now=second)
        beacon.heard(beat("a"), now=second)
    assert beacon.judge(now=10 + PATIENCE) is Health.READY
    assert beacon.judge(now=10.1 + PATIENCE) is Health.BROKER_DOWN
    beacon.renewed(others, now=10.2 + PATIENCE)
    assert beacon.judge(now=10.2 + PATIENCE) is Health.STARTING
    beacon.heard(beat("a"), now=10.3 + PATIENCE)
    assert beacon.judge(now=10.3 + PATIENCE) is Health.READY


def test_silence_for_everybody_is_a_broker_that_is_down() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a"), beat("b"), beat("c", "a")), now=0)
    assert beacon.judge(now=PATIENCE + 1) is Health.BROKER_DOWN


def test_silence_alone_is_not_deafness() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a")), now=0)
    assert beacon.judge(now=PATIENCE + 1) is Health.BROKER_DOWN


def test_when_the_broker_comes_back_the_subscriptions_get_their_time() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a")), now=0)
    beacon.heard(beat("a"), now=0)
    beacon.not_renewed()
    beacon.renewed(leases(beat("a"), beat("b", "b", "a")), now=100)
    assert beacon.judge(now=101) is Health.STARTING
    beacon.heard(beat("a"), now=101)
    assert beacon.judge(now=101) is Health.READY


def test_a_silent_reading_connection_is_replaced_once_per_patience() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a")), now=0)
    assert not beacon.wants_new_reading(now=PATIENCE)
    assert beacon.wants_new_reading(now=PATIENCE + 1)
    assert not beacon.wants_new_reading(now=PATIENCE + 2)
    assert beacon.wants_new_reading(now=2 * PATIENCE + 2)


def test_who_is_counted_otherwise_subscribes_again_once_until_they_agree() -> None:
    beacon = Beacon("a", now=0)
    said = (True, False, False, None, False, True, None, False)
    assert [beacon.wants_to_subscribe_again(each) for each in said] == [
        each in (1, 7) for each in range(len(said))
    ]


def test_a_dead_peer_is_forgotten_with_its_lease() -> None:
    beacon = Beacon("a", now=0)
    beacon.renewed(leases(beat("a"), beat("b")), now=0)
    beacon.heard(beat("b", clients=7), now=0)
    assert [(one.replica, one.clients) for one in beacon.replicas(now=1)] == [("a", 0), ("b", 7)]
    beacon.renewed(leases(beat("a")), now=PATIENCE + 1)
    assert [one.replica for one in beacon.replicas(now=PATIENCE + 1)] == ["a"]


def test_whom_we_hear_is_whom_we_heard_lately() -> None:
    beacon = Beacon("a", now=0)
    beacon.heard(beat("b"), now=0)
    beacon.heard(beat("a"), now=PATIENCE)
    assert beacon.hears(now=PATIENCE) == ["a", "b"]
    assert beacon.hears(now=PATIENCE + 1) == ["a"]
