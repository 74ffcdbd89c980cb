"""Waiting for files in asyncio, without a thread.

Calls that copy or ask the owner are for ``asyncio.to_thread``: they give the interpreter up.
"""

import asyncio
from collections.abc import AsyncIterator

from pgmap._native import FileEvent, Pool, Subscription


async def events(subscription: Subscription) -> AsyncIterator[FileEvent]:
    """The events of a subscription; ``async for event in subscription`` is the same."""
    loop = asyncio.get_running_loop()
    descriptor = subscription.fileno()
    readable = asyncio.Event()
    loop.add_reader(descriptor, readable.set)
    try:
        while True:
            # Cleared before it reads: an event that comes later sets it again.
            readable.clear()
            while (event := subscription.try_next()) is not None:
                yield event
            await readable.wait()
    finally:
        loop.remove_reader(descriptor)


async def wait_for(pool: Pool, name: str | bytes, timeout: float | None = None) -> bool:
    """Waits until a file has this name. Returns whether one has, after ``timeout`` seconds or before.

    Raises OwnerGone when the owner ends.
    """
    with pool.subscribe(name, only=["created"]) as created:
        try:
            async with asyncio.timeout(timeout):
                # What was there before the subscription is found here; after it there is an event.
                while not pool.exists(name):
                    await anext(aiter(created))
        except TimeoutError:
            return pool.exists(name)
    return True
