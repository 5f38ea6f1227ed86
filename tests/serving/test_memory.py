"""What failed requests leave behind goes without waiting for the collector."""

import asyncio
import contextlib
import gc
import weakref

import pytest

from headway.serving import memory


class Text(str):
    """A text that can be watched."""


async def fail_with(text: Text) -> None:
    """Fail as a request does: the exception holds this frame, which holds its future and the text."""
    result = asyncio.get_running_loop().create_future()
    result.set_exception(TimeoutError(len(text)))
    await result


def test_texts_of_failed_requests_are_freed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "_INTERVAL_S", 0.01)

    async def fail_and_wait() -> weakref.ref[Text]:
        text = Text("word " * 1000)
        with contextlib.suppress(TimeoutError):
            await fail_with(text)
        watched = weakref.ref(text)
        del text
        assert watched() is not None
        returning = asyncio.create_task(memory.return_memory())
        await asyncio.sleep(0.5)
        returning.cancel()
        return watched

    gc.disable()
    try:
        assert asyncio.run(fail_and_wait())() is None
    finally:
        gc.enable()
