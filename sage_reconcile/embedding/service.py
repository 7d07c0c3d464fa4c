"""From the bytes of a request to the bytes of its answer, whatever HTTP framework carries them."""

import asyncio
from concurrent.futures import Future

from sage_reconcile.embedding.batching import Batcher, Tokens
from sage_reconcile.embedding.factory import Embedder
from sage_reconcile.embedding.metrics import Metrics
from sage_reconcile.embedding.wire import (
    EmbeddingRequest,
    RequestError,
    Texts,
    parse_inputs,
    parse_request,
    render_reply,
    shorten,
)


class EmbeddingService:
    """One model under its `names`; the first name is the one that answers carry."""

    def __init__(
        self,
        embedder: Embedder,
        batcher: Batcher[bytes],
        metrics: Metrics,
        names: tuple[str, ...],
        truncate: bool,
    ) -> None:
        self.embedder = embedder
        self.batcher = batcher
        self.metrics = metrics
        self.names = names
        self._truncate = truncate

    async def embed(self, body: bytes) -> bytes:
        """The reply to one request. Raises RequestError, QueueFullError, EncodingError.

        Cancelling it takes the request's inputs off the queue.
        """
        request = parse_request(body)
        self._check(request)
        self.batcher.check_room()
        inputs = parse_inputs(request.input)
        truncate = self._truncate if request.truncate is None else request.truncate
        if isinstance(inputs, Texts):
            # Thousands of texts take a while to tokenize; the event loop must answer /health meanwhile.
            tokens = await asyncio.to_thread(self.embedder.tokenize, inputs.values, truncate)
        else:
            tokens = self._own_tokens(inputs.values, truncate)
        self._check_lengths(request.model, tokens)
        future: Future[list[bytes]] = self.batcher.submit(tokens)
        vectors = await asyncio.wrap_future(future)
        prompt_tokens = sum(len(item) for item in tokens)
        return await asyncio.to_thread(self._reply, request, vectors, prompt_tokens)

    def _check(self, request: EmbeddingRequest) -> None:
        if request.model not in self.names:
            known = ", ".join(self.names)
            message = f"the model {request.model!r} is not served here; this engine serves {known}"
            raise RequestError(404, message, param="model", code="model_not_found")
        if request.dimensions is not None and not 1 <= request.dimensions <= self.embedder.dim:
            raise RequestError(
                400,
                f"dimensions is {request.dimensions}; {request.model} gives 1 to {self.embedder.dim}",
                param="dimensions",
            )

    def _own_tokens(self, values: list[list[int]], truncate: bool) -> list[Tokens]:
        for index, tokens in enumerate(values):
            for token in tokens:
                if not 0 <= token < self.embedder.vocab_size:
                    limit = self.embedder.vocab_size - 1
                    message = f"input[{index}] has the token id {token}; this model's ids are 0 to {limit}"
                    raise RequestError(400, message, param="input")
        return [tokens[: self.embedder.max_length] for tokens in values] if truncate else values

    def _check_lengths(self, model: str, inputs: list[Tokens]) -> None:
        limit = self.embedder.max_length
        for index, tokens in enumerate(inputs):
            if len(tokens) > limit:
                message = (
                    f"input[{index}] has {len(tokens)} tokens; {model} takes at most {limit}. "
                    'Shorten it, or send "truncate": true to have its end cut off'
                )
                raise RequestError(400, message, param="input", code="context_length_exceeded")

    def _reply(self, request: EmbeddingRequest, vectors: list[bytes], prompt_tokens: int) -> bytes:
        if request.dimensions is not None and request.dimensions < self.embedder.dim:
            vectors = [shorten(vector, request.dimensions, self.embedder.normalizes) for vector in vectors]
        return render_reply(request.model, vectors, request.encoding_format, prompt_tokens)
