"""Batches take what is idle: one place more with each answer, one less with each refusal."""

import asyncio

from moulin.app.room import LIMIT_MAX, Room


def test_places_grow_with_answers_and_shrink_with_refusals():
    async def play() -> list[int]:
        room, seen = Room(), []
        for _ in range(LIMIT_MAX + 3):
            await room.enter()
            await room.leave(is_welcome=True)
        seen.append(room.limit)
        await room.enter()
        await room.enter()
        await room.leave(is_welcome=False)
        seen.append(room.limit)
        await room.leave(is_welcome=False)
        seen.append(room.limit)
        return seen

    assert asyncio.run(play()) == [LIMIT_MAX, 1, 1]


def test_who_finds_no_place_waits_for_one():
    async def play() -> list[str]:
        room, order = Room(), []
        await room.enter()

        async def second() -> None:
            await room.enter()
            order.append("second")

        waiting = asyncio.ensure_future(second())
        await asyncio.sleep(0)
        order.append("first")
        await room.leave(is_welcome=True)
        await waiting
        return order

    assert asyncio.run(play()) == ["first", "second"]
