"""What the query service does: answers with their sources, chunks, and files taken in.

The classes are Hayhooks pipeline wrappers; `wrappers/` gives each its name in the URL. They await
the models, so that a slow NIM holds no thread; NVIDIA's embedder and ranker know no `await` and run
in the event loop's threads, of which the service has `THREADS`.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import fastapi
from fastapi import HTTPException
from fastapi_openai_compat import ChatCompletion, Choice, Message
from hayhooks import BasePipelineWrapper, async_streaming_generator
from haystack import Document, Pipeline
from haystack.document_stores.types import DocumentStore
from haystack.errors import FilterError
from pydantic import BaseModel, Field

from nim_cookbook import answering, conversations
from nim_cookbook.answering import Answer, answer_of, citation, no_answer, page
from nim_cookbook.endpoints import Endpoints, connect
from nim_cookbook.errors import ConfigurationError, CookbookError, causes
from nim_cookbook.explain import explain
from nim_cookbook.folders import SUFFIXES
from nim_cookbook.indexing import SourceFile
from nim_cookbook.wording import count
from rag_service.filters import Filters, as_haystack
from rag_service.pipelines import load
from rag_service.settings import FILES, STORE_URL, ServingSettings, Settings

#: Takes a file in: stores it and queues its indexing. Called with the file and its document's id.
Enqueue = Callable[[Path, str], object]
#: The id of an upload, which is that of its document.
FileId = Annotated[str, fastapi.Path(pattern=r"^file-[0-9a-f]{32}$")]

#: Threads for the calls that cannot be awaited, per process: as many requests wait on NVIDIA's
#: embedder and ranker at the same time. Python's own default is four more than there are cores.
THREADS = 64
FINDING = set(answering.FINDING)
#: Longest question in characters.
QUESTION_LENGTH = 4000


class Source(BaseModel):
    """A chunk that the chat model was shown.

    Attributes:
        citation: File and page, as a reader would look them up.
        document: The document's id.
        file: The file's name.
        page: Page that the chunk begins on, counted from 1; None without pages.
        title: The document's title, where it has one.
        score: The reranker's logit.
        text: The chunk.
    """

    citation: str
    document: str
    file: str
    page: int | None
    title: str | None
    score: float | None
    text: str


class Conversation(BaseModel):
    """What was made of a question that others came before.

    Attributes:
        searched_for: What was searched for in its place.
        looked_at: How many of the earlier questions were looked at: the latest.
        forgotten: How many were not, so that a follow-up cannot refer to them.
    """

    searched_for: str
    looked_at: int
    forgotten: int


class Reply(BaseModel):
    """An answer over HTTP.

    Attributes:
        answer: The answer, or what is said instead: a refusal, or that the answer was cut off.
        refused: Whether no chunk was good enough, so that the model was not asked.
        finish_reason: Why the model ended, `stop` as a rule, `length` when its answer was cut off;
            None when it was not asked.
        sources: What the model was shown, the best first.
        weights: What really answered, by role.
    """

    answer: str
    refused: bool
    finish_reason: str | None
    sources: list[Source]
    weights: dict[str, str]


class Found(BaseModel):
    """Chunks over HTTP, the best first."""

    sources: list[Source] = Field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Service:
    """What the wrappers of one process share.

    Attributes:
        api: Where the models are.
        store: Where the chunks are.
        enqueue: Takes an uploaded file in.
    """

    api: Endpoints
    store: DocumentStore
    enqueue: Enqueue


_log = logging.getLogger(__name__)
_lock = threading.Lock()
_service: Service | None = None


def service() -> Service:
    """Return what the wrappers share; found by the configuration when `use` gave none.

    Raises:
        CookbookError: Endpoints, store or settings are missing.
    """
    global _service
    with _lock:  # Hayhooks sets wrappers up side by side
        if _service is None:
            api = connect(wait=ServingSettings.from_environment().start_wait)
            _service = Service(api, _store(api), enqueue)
        return _service


def use(given: Service | None) -> None:
    """Let the wrappers of this process share this, in place of what the configuration says."""
    global _service
    with _lock:
        _service = given


def enqueue(path: Path, document: str) -> None:
    """Store an uploaded file and put its indexing into the queue.

    Raises:
        CookbookError: The file store or the queue is not there.
    """
    from rag_service.files import FileStore
    from rag_service.intake import submit
    from rag_service.queue import connect

    files = FileStore(Settings.from_environment().require(FILES))

    async def send() -> None:
        async with connect() as queue:
            await submit(queue, files, SourceFile(document, path))

    asyncio.run(send())  # Hayhooks takes uploads in threads, which have no loop


async def withdraw(file_id: FileId) -> dict[str, Any]:
    """Put the removal of an uploaded document into the queue, as OpenAI's Files API answers it.

    Raises:
        HTTPException: 404 for an unknown document, 503 when the queue is not there.
    """
    from rag_service.intake import remove
    from rag_service.queue import connect

    try:
        async with connect() as queue:
            if not await queue.references(file_id):
                raise HTTPException(404, f"There is no file {file_id}.")
            await remove(queue, file_id)
    except CookbookError as error:
        raise HTTPException(503, str(error)) from error
    return {"id": file_id, "object": "file", "deleted": True}


class Ask(BasePipelineWrapper):
    """Questions, as REST and as an OpenAI-compatible chat completion with streaming; uploads."""

    def setup(self) -> None:
        """Load the pipelines; called by Hayhooks at the start."""
        self.service = service()
        self.pipeline: Pipeline = load("ask", self.service.api, self.service.store)
        self.follow_ups = ServingSettings.from_environment().follow_ups
        self.rewrite: Pipeline = load("rewrite", self.service.api)

    async def run_api_async(self, question: str, filters: Filters | None = None) -> Reply:
        """Answer a question from the indexed documents.

        Args:
            question: The question.
            filters: Which chunks may be found, as Haystack writes filters.

        Raises:
            HTTPException: 422 for the question or the filters, 502 for a model that does not answer
                or answers with nothing.
        """
        return await self._answer(question, inputs(self.pipeline, question, filters))

    async def _answer(self, question: str, given: dict[str, Any]) -> Reply:
        try:
            result = await self.pipeline.run_async(given, include_outputs_from=FINDING)
        except Exception as error:
            raise as_http(error) from error
        return self._reply(answer_of(question, result))

    async def run_chat_completion_async(
        self, model: str, messages: list[dict[str, Any]], body: dict[str, Any]
    ) -> ChatCompletion | AsyncGenerator[Any, None]:
        """Answer the last question of a conversation, in the light of those before it.

        The sources come as text below the answer, and as data in the field `sources` of the
        completion, or of the last chunk but one; beside it stands what was made of a follow-up,
        in the field `conversation`.
        """
        question = last_question(messages)
        given = inputs(self.pipeline, question)
        earlier = [text for text in questions(messages)[:-1] if text.strip()]
        followed = await self._followed(earlier, question)
        if followed:
            asked = given["prompt_builder"]
            given = inputs(self.pipeline, followed.searched_for)
            if self.follow_ups != "rewritten":  # of joined questions a model may answer the first
                given["prompt_builder"] = asked
        if body.get("stream"):
            return self._stream(model, question, given, followed)
        reply = await self._answer(question, given)
        text = reply.answer + listing(reply.sources, followed)
        message = Message(role="assistant", content=text)
        finish = reply.finish_reason or "stop"  # a refusal is a whole answer
        choice = Choice(index=0, message=message, finish_reason=finish)
        name = f"chatcmpl-{uuid.uuid4().hex}"
        return completion(name, model, "chat.completion", choice, reply.sources, followed)

    async def _followed(self, earlier: Sequence[str], question: str) -> Conversation | None:
        """Return what is asked in the place of a follow-up; None for a first question."""
        if not earlier:
            return None
        if self.follow_ups == "off":
            return Conversation(searched_for=question, looked_at=0, forgotten=len(earlier))
        kept = conversations.remembered(earlier, QUESTION_LENGTH - len(question) - 1)
        text = conversations.joined(kept, question)
        check(text)  # earlier questions may hold what no model can be asked
        if self.follow_ups == "rewritten" and kept:
            try:
                result = await self.rewrite.run_async(conversations.inputs(kept, question))
            except Exception as error:
                raise as_http(error) from error
            text = next(iter(conversations.lines(result)), text)
        forgotten = len(earlier) - len(kept)
        return Conversation(searched_for=text, looked_at=len(kept), forgotten=forgotten)

    async def _stream(
        self, model: str, question: str, given: dict[str, Any], followed: Conversation | None
    ) -> AsyncGenerator[ChatCompletion, None]:
        name = f"chatcmpl-{uuid.uuid4().hex}"

        def chunk(
            text: str, sources: Sequence[Source] | None = None, finish: str | None = None
        ) -> ChatCompletion:
            delta = Message(role="assistant", content=text)
            choice = Choice(index=0, delta=delta, finish_reason=finish)
            made = followed if sources is not None else None
            return completion(name, model, "chat.completion.chunk", choice, sources, made)

        results: list[dict[str, Any]] = []
        try:
            running = async_streaming_generator(
                pipeline=self.pipeline,
                pipeline_run_args=given,
                include_outputs_from=FINDING,
                on_pipeline_end=results.append,
            )
            async with aclosing(running):  # a reader who leaves ends the run
                async for part in running:
                    # The text alone: the model's own end would cut the sources off.
                    if text := getattr(part, "content", ""):
                        yield chunk(text)
        except Exception as error:
            # The status line is long gone; the reader gets the reason as text.
            yield chunk(f"\n\nError: {as_http(error).detail}", finish="stop")
            return
        answer = answer_of(question, results[0])
        finish = answer.finish_reason or "stop"
        try:
            reply = self._reply(answer)
        except HTTPException as error:
            yield chunk(f"\n\nError: {error.detail}", finish=finish)
            return
        if reply.refused:
            yield chunk(reply.answer)
        elif finish == "length":  # below what was read before that was known
            yield chunk(f"\n\n{reply.answer}")
        yield chunk(listing(reply.sources, followed), reply.sources)
        yield chunk("", finish=finish)

    def _reply(self, answer: Answer) -> Reply:
        text, model = answer.text, self.service.api.chat.model
        if not text and answer.finish_reason != "length":  # a model that is cut off did answer
            raise HTTPException(502, no_answer(model, answer.finish_reason))
        return Reply(
            answer=text or no_answer(model, answer.finish_reason),
            refused=answer.refused,
            finish_reason=answer.finish_reason,
            sources=[source(chunk) for chunk in answer.sources],
            weights=self.service.api.weights,
        )

    def run_file_upload(
        self, filename: str | None, content_type: str | None, content: bytes, purpose: str
    ) -> dict[str, Any]:
        """Take a file in; the answer says that it is queued, not that it is indexed.

        Name and content identify the document, so that nobody's upload replaces another's. Whoever
        replaces a file deletes the old one by its id (`withdraw`), which sources name too. All who
        have the token share one index; give each group of users an index.
        """
        name = file_name(filename)
        if not content:
            raise HTTPException(422, f"{name} is empty.")
        document = f"file-{hashlib.sha256(name.encode() + b'/' + content).hexdigest()[:32]}"
        with tempfile.TemporaryDirectory(prefix="cookbook-upload-") as folder:
            path = Path(folder, name)
            path.write_bytes(content)
            try:
                self.service.enqueue(path, document)
            except CookbookError as error:
                raise HTTPException(503, str(error)) from error
        return {
            "id": document,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": name,
            "purpose": purpose,
            "status": "uploaded",  # Hayhooks would say "processed"
        }


class AskSync(BasePipelineWrapper):
    """The same as REST only and in a thread per request, to measure the difference."""

    def setup(self) -> None:
        """Load the pipeline; called by Hayhooks at the start."""
        self.service = service()
        self.pipeline: Pipeline = load("ask", self.service.api, self.service.store)

    def run_api(self, question: str) -> str:
        """Answer a question from the indexed documents."""
        given = inputs(self.pipeline, question)
        result = self.pipeline.run(given, include_outputs_from=FINDING)
        return answer_of(question, result).text


class Search(BasePipelineWrapper):
    """Chunks for a question, without the chat model."""

    def setup(self) -> None:
        """Load the pipeline; called by Hayhooks at the start."""
        self.pipeline: Pipeline = load("search", service().api, service().store)

    async def run_api_async(
        self, question: str, top_k: int = 5, filters: Filters | None = None
    ) -> Found:
        """Find the chunks that a question is about.

        Args:
            question: The question.
            top_k: Most chunks, from 1 to 20.
            filters: Which chunks may be found, as Haystack writes filters.
        """
        try:
            given = inputs(self.pipeline, question, filters, top_k)
            result = await self.pipeline.run_async(given, include_outputs_from=FINDING)
        except Exception as error:
            raise as_http(error) from error
        return Found(sources=[source(chunk) for chunk in answering.found(result)[:top_k]])


class SearchSync(BasePipelineWrapper):
    """The same in a thread per request, to measure the difference."""

    def setup(self) -> None:
        """Load the pipeline; called by Hayhooks at the start."""
        self.pipeline: Pipeline = load("search", service().api, service().store)

    def run_api(self, question: str, top_k: int = 5) -> list[str]:
        """Find the chunks that a question is about."""
        given = inputs(self.pipeline, question, top_k=top_k)
        result = self.pipeline.run(given, include_outputs_from=FINDING)
        return [citation(chunk) for chunk in answering.found(result)[:top_k]]


def inputs(
    pipeline: Pipeline,
    question: str,
    filters: Filters | Mapping[str, Any] | None = None,
    top_k: int | None = None,
) -> dict[str, Any]:
    """Return the inputs of a pipeline, `ask` or `search`, whichever steps it has.

    Raises:
        HTTPException: 422, as for `check`, or the filters are none.
    """
    check(question, top_k)
    given = answering.inputs(pipeline, question.strip(), as_haystack(filters))
    if top_k and "ranker" in given:
        given["ranker"]["top_k"] = top_k
    return given


def check(question: str, top_k: int | None = None) -> None:
    """Refuse what cannot be searched for.

    Raises:
        HTTPException: 422, the question is empty, too long or no Unicode, or `top_k` is out of
            range.
    """
    question = question.strip()
    if not 0 < len(question) <= QUESTION_LENGTH:
        raise HTTPException(422, f"A question has 1 to {QUESTION_LENGTH} characters.")
    if any("\ud800" <= letter <= "\udfff" for letter in question):
        raise HTTPException(422, "The question holds half a character (a lone surrogate).")
    if top_k is not None and not 1 <= top_k <= 20:
        raise HTTPException(422, "top_k is a number from 1 to 20.")


def source(chunk: Document) -> Source:
    """Return a chunk as it goes over HTTP."""
    meta = chunk.meta
    return Source(
        citation=citation(chunk),
        document=str(meta.get("document", chunk.id)),
        file=str(meta.get("file_path", "")),
        page=page(chunk),
        title=None if meta.get("title") is None else str(meta["title"]),
        score=chunk.score,
        text=chunk.content or "",
    )


def listing(sources: Sequence[Source], followed: Conversation | None = None) -> str:
    """Return the sources and what was forgotten as text below an answer; nothing for neither."""
    text = ""
    if sources:
        lines = [f"[{n}] {one.citation}" for n, one in enumerate(sources, start=1)]
        text = "\n\nSources:\n" + "\n".join(f"- {line}" for line in lines)
    if followed and followed.forgotten:
        text += f"\n\nNot considered: {count(followed.forgotten, 'earlier question')}."
    return text


def completion(
    name: str,
    model: str,
    kind: str,
    choice: Choice,
    sources: Sequence[Source] | None = None,
    followed: Conversation | None = None,
) -> ChatCompletion:
    """Return a chat completion or a chunk of one, with what the text leaves out in own fields."""
    extra: dict[str, Any] = {}
    if sources is not None:
        extra["sources"] = [one.model_dump() for one in sources]
    if followed is not None:
        extra["conversation"] = followed.model_dump()
    return ChatCompletion(
        id=name, object=kind, created=int(time.time()), model=model, choices=[choice], **extra
    )


def last_question(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the text of the last message of the user.

    Raises:
        HTTPException: 422, there is none.
    """
    if asked := questions(messages):
        return asked[-1]
    raise HTTPException(422, "The conversation holds no message of the user.")


def questions(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the texts of all messages of the user."""
    found = []
    for message in messages:
        if isinstance(message, Mapping) and message.get("role") == "user":
            content = message.get("content")
            parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
            typed = (p for p in parts if isinstance(p, Mapping) and p.get("type") == "text")
            texts = (part.get("text") for part in typed)
            found.append("\n".join(text for text in texts if isinstance(text, str)))
    return found


def file_name(text: str | None) -> str:
    """Return a file's own name, without folders and without what no file name should hold.

    Raises:
        HTTPException: 422 for no name, 415 for a kind of file that is not indexed.
    """
    name = Path((text or "").replace("\\", "/")).name
    name = re.sub(r"[^\w .()+,@-]", "_", name)[-150:].strip(" .")
    if not name:
        raise HTTPException(422, "The file has no name.")
    if Path(name).suffix.lower() not in SUFFIXES:
        raise HTTPException(415, f"{name} cannot be indexed: send one of {', '.join(SUFFIXES)}.")
    return name


def as_http(error: BaseException) -> HTTPException:
    """Return what a caller is told about an error: one sentence on an endpoint, else nothing."""
    if isinstance(error, HTTPException):
        return error
    for cause in causes(error):
        if isinstance(cause, FilterError):
            return HTTPException(422, f"The store cannot use these filters: {cause}")
        psycopg = sys.modules.get("psycopg")  # it is there where a store uses it
        if psycopg and isinstance(cause, psycopg.DataError):
            return HTTPException(
                422, f"The store cannot compare these values: {cause}".split("\n")[0]
            )
    sentence = explain(error)
    _log.error("A request failed: %s", sentence or error, exc_info=None if sentence else error)
    if sentence:
        return HTTPException(502, sentence)
    return HTTPException(500, "The question could not be answered; the service's log says why.")


def _store(api: Endpoints) -> DocumentStore:
    """Open the store of the configuration, for vectors as wide as the embedding model's."""
    from rag_service.indexer import dimension, document_embedder
    from rag_service.stores import open_store, store_kind

    if store_kind(Settings.from_environment().require(STORE_URL)) == "embedded qdrant":
        raise ConfigurationError(
            f"{STORE_URL} is a folder, which one process alone can open, and a service does not "
            "index in its own process: set it to a PostgreSQL or Qdrant server."
        )
    width = dimension(document_embedder(api.embedding), wait=0)
    return open_store(dimension=width)
