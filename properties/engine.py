"""A simulated engine: the same script, run by a real Lua, on books in memory and in virtual time; networks that fail.

Only the commands that the script uses, as Redis documents them. `properties/test_simulation.py` compares it with a real
server.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import Any

import attrs
import lupa.lua51
import trio

from supervisor._cluster.engine import _BODY, Argument, Engine, EngineLost, Push


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, float) and value == int(value):
        value = int(value)
    return str(value).encode()


def _id(text: bytes) -> int:
    return int(text.split(b"-")[0])


@attrs.define(eq=False)
class Store:
    """Keys and values, and the moment at which some of them are over."""

    now: Callable[[], float] = trio.current_time
    values: dict[bytes, Any] = attrs.field(factory=dict)
    ends: dict[bytes, float] = attrs.field(factory=dict)
    publish: Callable[[bytes, bytes], None] = lambda channel, payload: None

    def call(self, command: bytes, *arguments: Any) -> Any:
        name, *rest = (_bytes(part) for part in (command, *arguments))
        for key in [key for key, end in self.ends.items() if end <= self.now()]:
            self.values.pop(key, None)
            del self.ends[key]
        answer = getattr(self, "do_" + name.decode().lower())(*rest)
        for key in [key for key, value in self.values.items() if value in ({}, set())]:
            del self.values[key]
            self.ends.pop(key, None)
        return answer

    def _of(self, key: bytes, kind: Callable[[], Any]) -> Any:
        return self.values.setdefault(key, kind())

    def do_time(self) -> list[bytes]:
        seconds, rest = divmod(self.now(), 1)
        return [_bytes(int(seconds)), _bytes(int(rest * 1e6))]

    # -- plain values

    def do_get(self, key: bytes) -> Any:
        return self.values.get(key, False)

    def do_set(self, key: bytes, value: bytes, *options: bytes) -> Any:
        if b"NX" in options and key in self.values:
            return False
        self.values[key] = value
        if b"PX" in options:
            self.ends[key] = self.now() + int(options[-1]) / 1000
        return b"OK"

    def do_incr(self, key: bytes) -> int:
        self.values[key] = _bytes(int(self.values.get(key, b"0")) + 1)
        return int(self.values[key])

    def do_del(self, key: bytes) -> int:
        self.ends.pop(key, None)
        return int(self.values.pop(key, None) is not None)

    def do_exists(self, key: bytes) -> int:
        return int(key in self.values)

    def do_pexpire(self, key: bytes, milliseconds: bytes) -> int:
        if key in self.values:
            self.ends[key] = self.now() + int(milliseconds) / 1000
        return int(key in self.values)

    # -- sorted sets: member -> score

    def _sorted(self, key: bytes) -> list[bytes]:
        scores = self.values.get(key, {})
        return sorted(scores, key=lambda member: (scores[member], member))

    def do_zadd(self, key: bytes, *rest: bytes) -> int:
        scores = self._of(key, dict)
        score, member = rest[-2:]
        if rest[0] == b"XX" and member not in scores:
            return 0
        scores[member] = float(score)
        return 1

    def do_zscore(self, key: bytes, member: bytes) -> Any:
        score = self.values.get(key, {}).get(member)
        return False if score is None else _bytes(score)

    def do_zincrby(self, key: bytes, by: bytes, member: bytes) -> bytes:
        scores = self._of(key, dict)
        scores[member] = scores.get(member, 0.0) + float(by)
        return _bytes(scores[member])

    def do_zrem(self, key: bytes, member: bytes) -> int:
        return int(self.values.get(key, {}).pop(member, None) is not None)

    def do_zcard(self, key: bytes) -> int:
        return len(self.values.get(key, {}))

    def do_zrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        end = int(last) + 1
        return self._sorted(key)[int(first) : end or None]

    def do_zrevrange(self, key: bytes, first: bytes, last: bytes) -> list[bytes]:
        return self._sorted(key)[::-1][int(first) : int(last) + 1]

    def do_zrangebyscore(self, key: bytes, least: bytes, most: bytes, *limit: bytes) -> list[bytes]:
        scores = self.values.get(key, {})
        found = [member for member in self._sorted(key) if float(least) <= scores[member] <= float(most)]
        return found[: int(limit[2])] if limit else found

    # -- hashes

    def do_hset(self, key: bytes, *pairs: bytes) -> int:
        self._of(key, dict).update(zip(pairs[::2], pairs[1::2], strict=True))
        return 1

    def do_hget(self, key: bytes, field: bytes) -> Any:
        return self.values.get(key, {}).get(field, False)

    def do_hmget(self, key: bytes, *fields: bytes) -> list[Any]:
        return [self.do_hget(key, field) for field in fields]

    def do_hdel(self, key: bytes, field: bytes) -> int:
        return int(self.values.get(key, {}).pop(field, None) is not None)

    def do_hgetall(self, key: bytes) -> list[bytes]:
        return [part for pair in self.values.get(key, {}).items() for part in pair]

    def do_hvals(self, key: bytes) -> list[bytes]:
        return list(self.values.get(key, {}).values())

    # -- sets

    def do_sadd(self, key: bytes, member: bytes) -> int:
        self._of(key, set).add(member)
        return 1

    def do_srem(self, key: bytes, member: bytes) -> int:
        self.values.get(key, set()).discard(member)
        return 1

    def do_smembers(self, key: bytes) -> list[bytes]:
        return sorted(self.values.get(key, ()))

    def do_scard(self, key: bytes) -> int:
        return len(self.values.get(key, ()))

    def do_spop(self, key: bytes, count: bytes) -> list[bytes]:
        popped = self.do_smembers(key)[: int(count)]
        self.values.get(key, set()).difference_update(popped)
        return popped

    # -- streams: a list of entries, and the last number

    def do_xadd(self, key: bytes, *rest: bytes) -> bytes:
        stream = self._of(key, lambda: [[], 0])
        most = int(rest[1]) if rest[0] == b"MAXLEN" else None
        identity, *fields = rest[2:] if most is not None else rest
        assert _id(identity) > stream[1]
        stream[1] = _id(identity)
        stream[0].append([identity, list(fields)])
        if most is not None:
            del stream[0][: len(stream[0]) - most]
        return identity

    def do_xdel(self, key: bytes, identity: bytes) -> int:
        stream = self.values.get(key, [[], 0])
        stream[0] = [entry for entry in stream[0] if entry[0] != identity]
        return 1

    def do_xrange(self, key: bytes, first: bytes, last: bytes, *count: bytes) -> list[Any]:
        least = 0 if first == b"-" else _id(first)
        most = 2**63 if last == b"+" else _id(last)
        found = [entry for entry in self.values.get(key, [[], 0])[0] if least <= _id(entry[0]) <= most]
        return found[: int(count[1])] if count else found

    def do_xrevrange(self, key: bytes, last: bytes, first: bytes, *count: bytes) -> list[Any]:
        found = self.do_xrange(key, first, last)[::-1]
        return found[: int(count[1])] if count else found

    def do_xinfo(self, what: bytes, key: bytes) -> list[Any]:
        return [b"last-generated-id", _bytes(f"{self.values[key][1]}-0")]

    def do_publish(self, channel: bytes, payload: bytes) -> int:
        self.publish(channel, payload)
        return 1


#: What the script finds around it in a server.
_FRAME = b"""function(call, pack, unpack_, ...)
    redis, cmsgpack, KEYS, ARGV = {call = call}, {pack = pack, unpack = unpack_}, {}, {...}
    return body()
end"""


@attrs.define(eq=False)
class Simulated:
    """One server. Nodes reach it through `connect`, over networks that are slow, cut, and cut off."""

    rng: random.Random
    store: Store = attrs.field(factory=Store)
    run: str = "run-1"
    #: Nodes whose network lets nothing through.
    cut_off: set[Any] = attrs.field(factory=set)
    connections: list[Wire] = attrs.field(factory=list)
    #: Called after each script.
    check: Callable[[Store], None] = lambda store: None
    _packed: dict[bytes, Any] = attrs.field(factory=dict)
    _tokens: Any = attrs.field(factory=itertools.count)
    lua: Any = attrs.field(init=False)
    _function: Any = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.lua = lupa.lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
        self.store.publish = self._publish
        self._function = self.lua.eval(_FRAME)
        self.lua.execute(b"function body()\n" + _BODY.encode() + b"\nend")

    def evaluate(self, arguments: Sequence[Argument]) -> list[Any]:
        """What a script answers; all of it in one step."""
        given = [_bytes(it) if not isinstance(it, str) else it.encode("utf-8", "surrogatepass") for it in arguments]
        answer = self._from_lua(self._function(self._call, self._pack, self._unpack, *given))
        self.check(self.store)
        return list(answer)

    def _call(self, command: bytes, *arguments: Any) -> Any:
        return self._to_lua(self.store.call(command, *arguments))

    def _to_lua(self, value: Any) -> Any:
        return self.lua.table_from([self._to_lua(it) for it in value]) if isinstance(value, list) else value

    def _from_lua(self, value: Any) -> Any:
        if lupa.lua51.lua_type(value) == "table":
            return [self._from_lua(value[index]) for index in range(1, len(value) + 1)]
        return int(value) if isinstance(value, float) else value

    def _pack(self, value: Any) -> bytes:
        token = _bytes(next(self._tokens))
        self._packed[token] = self._from_lua(value)
        return token

    def _unpack(self, token: bytes) -> Any:
        return self._to_lua(self._packed[token])

    def _publish(self, channel: bytes, payload: bytes) -> None:
        for wire in self.connections:
            if channel.decode("utf-8", "surrogatepass") in wire.channels:
                wire.sender.send_nowait((channel, payload))

    def restart(self) -> None:
        """It forgets everything."""
        self.run = f"run-{int(self.run[4:]) + 1}"
        self.store.values.clear()
        self.store.ends.clear()
        self.cut()

    def cut(self, node: Any = None) -> None:
        """All connections, or one node's, are lost; what is under way may have been done."""
        for wire in [wire for wire in self.connections if node in (None, wire.node)]:
            wire.lost.set()

    @contextlib.asynccontextmanager
    async def connect(self, node: Any) -> AsyncGenerator[Engine, None]:
        """A connection of `node`, as `supervisor._cluster.engine.open_redis` has them."""
        await trio.sleep(self.rng.choice((0, 0.001, 0.05)))
        if node in self.cut_off:
            await trio.sleep(0.2)
            raise EngineLost("nobody answers")
        wire = Wire(self, node)
        self.connections.append(wire)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wire.break_down)
                yield wire
                nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:  # noqa: ASYNC103 - the rest is raised again
            if group.split(EngineLost)[1] is not None:
                raise
            raise EngineLost("the connection is lost") from None
        finally:
            self.connections.remove(wire)


@attrs.define(eq=False)
class Wire:
    """One connection. Commands take a while on their way, and so do answers and pushes."""

    server: Simulated
    node: Any
    channels: set[str] = attrs.field(factory=set)
    lost: trio.Event = attrs.field(factory=trio.Event)
    run: str = attrs.field(init=False)
    sender: trio.MemorySendChannel[Push] = attrs.field(init=False)
    receiver: trio.MemoryReceiveChannel[Push] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.run = self.server.run
        self.sender, self.receiver = trio.open_memory_channel[Push](100_000)

    async def break_down(self) -> None:
        await self.lost.wait()
        raise EngineLost("the connection is lost")

    async def _travel(self) -> None:
        await trio.sleep(self.server.rng.choice((0, 0, 0.0005, 0.002, 0.03)))
        if self.node in self.server.cut_off:
            await trio.sleep(0.3)
            raise EngineLost("no answer in time")

    async def call(self, arguments: Sequence[Argument], *, frugal: bool) -> list[Any]:
        await self._travel()
        answer = self.server.evaluate(arguments)
        await self._travel()
        return answer

    def subscribe(self, channels: Sequence[str]) -> None:
        self.channels.update(channels)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        self.channels.difference_update(channels)

    async def pushes(self) -> AsyncIterator[Push]:
        async for push in self.receiver:
            await self._travel()
            yield push
