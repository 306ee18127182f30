"""Batches work items of concurrent callers, and shares the worker fairly among them.

Nothing waits for a batch to fill up: while one batch runs, the next one gathers. One thread does
the work and picks its batches itself, so that the event loop is never in its way.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class BatcherClosed(RuntimeError):
    """Work was handed to a batcher that is closed, or was still waiting when it closed."""


class _Request(Generic[Item, Result]):
    """The items of one caller, the costliest first, so that neighbours cost about the same."""

    def __init__(self, items: Sequence[Item], cost: Callable[[Item], int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Result]] = self.loop.create_future()
        entries = [(max(1, cost(item)), index, item) for index, item in enumerate(items)]
        self.waiting = deque(sorted(entries, key=lambda entry: -entry[0]))
        self.results: dict[int, Result] = {}
        self.size = len(entries)
        self.gone = False

    def finish(self, error: BaseException | None) -> None:
        """Hand the outcome to the caller; called from the worker thread."""

        def settle() -> None:
            if self.future.done():
                return
            if error is not None:
                self.future.set_exception(error)
            else:
                self.future.set_result([self.results[index] for index in range(self.size)])

        self.gone = True
        try:
            self.loop.call_soon_threadsafe(settle)
        except RuntimeError:  # the caller's event loop is closed, so nobody waits
            return


class Batcher(Generic[Item, Result]):
    """Runs items in batches on one worker thread.

    Items of one batch are padded to the costliest, so a batch of n costs n times the cost of that
    one; this is kept within a budget, and items under half its cost wait for a batch of their own
    size. Requests take turns: each batch starts with the next request's item and takes one item
    of each request in turn, so a large request never keeps a small one waiting for more than a
    batch of every other request. Items of a caller that was cancelled are dropped unless they run
    already.

    Args:
        run: Computes a batch, in the worker thread; one result for each item, in order. If it
            raises, all requests with an item in the batch fail with that error.
        cost: The cost of an item, for example its number of tokens.
        budget: The largest cost of a batch. A costlier item runs alone.
        name: Name of the worker thread.
    """

    def __init__(
        self,
        run: Callable[[list[Item]], Sequence[Result]],
        cost: Callable[[Item], int],
        budget: int,
        name: str = "batcher",
    ) -> None:
        self._run = run
        self._cost = cost
        self._budget = budget
        self._requests: deque[_Request[Item, Result]] = deque()
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    async def submit(self, items: Sequence[Item]) -> list[Result]:
        """Return the results of all items, in their order.

        Raises:
            BatcherClosed: The batcher is closed, or was closed before all items ran.
        """
        if not items:
            return []
        request: _Request[Item, Result] = _Request(items, self._cost)
        with self._wake:
            if self._closed:
                raise BatcherClosed("the engine is closed")
            self._requests.append(request)
            self._wake.notify()
        try:
            return await request.future
        finally:
            request.gone = True

    async def close(self) -> None:
        """Refuse new work, fail what waits, and wait for the batch that runs."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        while (batch := self._next_batch()) is not None:
            requests = {id(request): request for request, _, _ in batch}
            try:
                results = self._run([item for _, _, item in batch])
                for (request, index, _), result in zip(batch, results, strict=True):
                    request.results[index] = result
            except Exception as error:  # the callers get it
                for request in requests.values():
                    request.finish(error)
                continue
            for request in requests.values():
                if len(request.results) == request.size:
                    request.finish(None)

    def _next_batch(self) -> list[tuple[_Request[Item, Result], int, Item]] | None:
        """Wait for work and return the next batch, None when the batcher is closed."""
        with self._wake:
            while True:
                self._forget_finished()
                if self._closed:
                    for request in self._requests:
                        request.finish(BatcherClosed("the engine was closed"))
                    self._requests.clear()
                    return None
                if self._requests:
                    return self._gather()
                self._wake.wait()

    def _forget_finished(self) -> None:
        alive = [request for request in self._requests if request.waiting and not request.gone]
        self._requests = deque(alive)

    def _gather(self) -> list[tuple[_Request[Item, Result], int, Item]]:
        largest = self._requests[0].waiting[0][0]
        batch: list[tuple[_Request[Item, Result], int, Item]] = []
        turn = deque(self._requests)
        self._requests.rotate(-1)
        while turn and (not batch or (len(batch) + 1) * largest <= self._budget):
            request = turn.popleft()
            if request.waiting and largest / 2 <= request.waiting[0][0] <= largest:
                _, index, item = request.waiting.popleft()
                batch.append((request, index, item))
                turn.append(request)
        return batch
