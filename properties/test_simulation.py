"""What nodes promise each other holds under seeds: networks that fail, and schedules of every kind."""

from __future__ import annotations

import random
from typing import Any

import pytest
import trio

from properties.engine import Simulated, Store
from properties.simulation import play
from supervisor._cluster.engine import open_redis, parse_url
from tests.valkey import Valkey
from tests.valkey import valkey as valkey  # a fixture


@pytest.mark.req("R41", "A59", "A57")
@pytest.mark.parametrize(
    "seeds", [range(25), pytest.param(range(25, 600), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_networks_that_fail_leave_everything_as_it_should_be(seeds: range, record_property: Any) -> None:
    scripts = 0
    for seed in seeds:
        network = play(seed)
        assert network.problems == [], f"seed {seed}: {network.problems[:5]}"
        scripts += network.scripts
    record_property("scripts", scripts)


@pytest.mark.req("R41")
@pytest.mark.parametrize(("nodes", "seeds"), [(10, 5), (100, 1)])
def test_so_do_many_nodes(nodes: int, seeds: int) -> None:
    for seed in range(seeds):
        network = play(seed, nodes)
        assert network.problems == [], f"seed {seed}: {network.problems[:5]}"


def test_a_seed_is_a_run() -> None:
    first, second = play(3), play(3)
    assert (first.scripts, first.told) == (second.scripts, second.told)


def script(simulated: Simulated, node: str, *operation: Any) -> Any:
    """What one operation of a node is answered; its lease is a second."""
    _, answer = simulated.evaluate(["p:", node, "", 1000, operation[0], len(operation) - 1, *operation[1:]])
    return answer


def claim(simulated: Simulated, node: str, user: str, name: str, policy: str = "refuse") -> Any:
    return script(simulated, node, "claim", user, f"{node}-{name}", "", "0", 3, 10_000, policy, "refuse")


@pytest.mark.req("A59", "R25")
def test_what_a_lost_node_has_left_of_a_user_is_not_held_against_them() -> None:
    """However much it has left of others, which takes many calls to take back."""
    clock = 0.0
    simulated = Simulated(random.Random(), Store(now=lambda: clock))
    for node in "xy":
        script(simulated, node, "enter", "run", "epoch")
    for number in range(1200):
        assert claim(simulated, "x", f"user-{number // 3}", f"c{number}") == [b"in"]
    assert claim(simulated, "y", "user-399", "c1") == [b"full", b"per user", 3]
    clock = 0.9
    script(simulated, "y", "renew")
    clock = 1.5
    assert claim(simulated, "y", "user-399", "c1") == [b"in"]
    for _ in range(5):
        script(simulated, "y", "renew")
    assert list(simulated.store.values[b"p:all"]) == [b"y-c1 user-399"]
    assert b"p:n:x" not in simulated.store.values


@pytest.mark.req("A59")
def test_who_has_come_in_again_is_not_robbed_by_who_has_waited_for_them_before() -> None:
    simulated = Simulated(random.Random(), Store(now=lambda: 0.0))
    for node in "xy":
        script(simulated, node, "enter", "run", "epoch")
    for number in range(3):
        claim(simulated, "x", "ann", f"c{number}")
    assert claim(simulated, "y", "ann", "c9", "evict-oldest") == [b"in", b"x-c0 ann"]
    script(simulated, "y", "leave", "y-c9 ann")
    script(simulated, "x", "enter", "run", "epoch")
    assert claim(simulated, "x", "ann", "c0") == [b"in"]
    script(simulated, "y", "rob", "x-c0 ann")
    assert b"x-c0 ann" in simulated.store.values[b"p:all"]


async def test_the_simulated_engine_answers_as_a_real_one_does(valkey: Valkey) -> None:
    """The same random operations, by two nodes, on both."""
    rng = random.Random(1)
    simulated = Simulated(random.Random(2))
    async with open_redis(parse_url(valkey.url, 2.0), 2.0) as real:
        for number in range(600):
            node = rng.choice("xy")
            user, claim = rng.choice(("ann", "bob")), f"{node}-c{rng.randrange(6)}"
            what = rng.choice(OPERATIONS)
            given = [str(it).format(user=user, claim=claim, node=node, number=number) for it in what]
            if given[0] == "emit":
                given[2] = str(10**6 + number)
            batch = str(number) if given[0] not in ("attend", "present", "runs", "look") else ""
            head = ["p:", node, batch, 100_000]
            spelled = [*head, given[0], len(given) - 1, *given[1:]]
            if number < 2:
                spelled = ["p:", "xy"[number], "", 100_000, "enter", 2, "run", "epoch"]
            theirs, ours = await real.call(spelled, frugal=False), simulated.evaluate(spelled)
            if given[0] == "claim":  # of several seats that may be awaited, each has its own choice
                ours, theirs = ([*it[1][:1], len(it[1])] for it in (ours, theirs))
            assert plain(ours) == plain(theirs), given
    for key, value in simulated.store.values.items():
        if isinstance(value, set):
            assert sorted(valkey.ask("SMEMBERS", key.decode())) == sorted(it.decode() for it in value)
    await trio.lowlevel.checkpoint()


OPERATIONS: list[tuple[Any, ...]] = [
    ("claim", "{user}", "{claim}", "s", "0", 2, 3, "evict-oldest", "refuse"),
    ("claim", "{user}", "{claim}", "s", "{number}", 2, 3, "refuse", "evict-greediest"),
    ("claim", "{user}", "{claim}", "", "0", 2, 3, "evict-oldest", "evict-oldest"),
    ("leave", "{claim} {user}"),
    ("give_back", "{claim} {user}"),
    ("tell", "room:r", "", "", 5, 60, 100_000, '{{"n":{number}}}'),
    ("tell", "room:{user}", "{claim}", "{claim} {user}", 3, 1000, 100_000, '{{"n":{number}}}'),
    ("emit", "errand:{node}-r1", 0, 5, 1000, 100_000, '{{"n":{number}}}'),
    ("come", "r", "{claim}", '{{"connection":"{claim}"}}'),
    ("go", "r", "{claim}"),
    ("run", "{user}", "{node}-r1", "card {number}", 100_000),
    ("runs", "{user}"),
    ("touch", 100_000, "room:r"),
]


def plain(answer: Any) -> Any:
    """Numbers and texts alike; in an order that does not matter to sets."""
    if isinstance(answer, list):
        return [plain(it) for it in answer]
    return answer if isinstance(answer, int) else bytes(answer)
