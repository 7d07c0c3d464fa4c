"""Which request paths go to engines, and which are taken at all: those that everybody reads the same way."""

import re
from urllib.parse import unquote, unquote_to_bytes

import httptools

# Path -> what it does. Every one passes on unchanged; an engine that does not offer it says so itself.
ENGINE_PATHS = {
    "/v1/chat/completions": "Chat completion",
    "/v1/completions": "Text completion",
    "/v1/embeddings": "Embeddings",
    "/v1/responses": "Responses API",
    "/v1/messages": "Anthropic Messages API",
    "/v1/messages/count_tokens": "Tokens of a Messages request",
    "/v2/embed": "Embeddings (Cohere's form)",
    "/v1/rerank": "Order documents by relevance",
    "/rerank": "Order documents by relevance",
    "/v2/rerank": "Order documents by relevance",
    "/v1/score": "Similarity of texts",
    "/score": "Similarity of texts",
    "/pooling": "Hidden states of a pooling model",
    "/classify": "Classification",
    "/generative_scoring": "Probabilities of chosen tokens",
    "/inference/v1/generate": "Token ids to token ids",
    "/tokenize": "Text to token ids",
    "/detokenize": "Token ids to text",
    "/v1/audio/transcriptions": "Speech to text (multipart form)",
    "/v1/audio/translations": "Speech to English text (multipart form)",
    "/v1/audio/speech": "Text to speech",
}
# Their bodies are multipart forms, those of all others JSON.
FORM_PATHS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})
# Below /v1/ whatever names a model goes to an engine of it, except what is the gateway's own or an
# administrator's: engines load adapters and end processes below /v1/, too.
_NOT_FOR_CLIENTS = frozenset(
    {
        "management",
        "models",
        "load_lora_adapter",
        "unload_lora_adapter",
        "lora_adapters",
        "sleep",
        "wake_up",
        "is_sleeping",
        "collective_rpc",
        "server_info",
        "reset_prefix_cache",
        "reset_mm_cache",
        "update_weights",
        "load",
        "unload",
        "internal",
        "admin",
        "debug",
        "dev",
    }
)
_PLAIN = re.compile(r"/v1((?:/[A-Za-z0-9_-]+)+)")

# More layers of percent-encoding than anybody needs who does not hide something.
MAX_LAYERS = 4

# "." and ".." as a whole segment, an empty segment, or a backslash, which some read as "/".
_AMBIGUOUS = re.compile(r"//|\\|/\.{1,2}(?:[/;]|$)")
_LISTED = {path.encode(): path.encode() for path in ENGINE_PATHS}


def engine_target(url: bytes) -> tuple[bytes, bytes] | None:
    """For the target of a POST that goes to engines: the path as engines know it, and that with the query.

    None for any other.
    """
    plain, mark, query = url.partition(b"?")
    path = _LISTED.get(plain) or _engine_path(url)
    if path is None:
        return None
    return path, b"%b?%b" % (path, query.partition(b"#")[0]) if mark and query else path


def is_ambiguous(raw_path: bytes) -> bool:
    """Whether a path, as it came or with its percent-encoding undone (also repeatedly), has dot segments,
    doubled slashes or backslashes: an engine might take it for another path than the gateway did."""
    path = raw_path.decode("latin-1")
    for _ in range(MAX_LAYERS):
        if _AMBIGUOUS.search(path):
            return True
        plain = unquote(path)
        if plain == path:
            return False
        path = plain
    return True


def _engine_path(url: bytes) -> bytes | None:
    try:
        raw = httptools.parse_url(url).path
    except httptools.HttpParserInvalidURLError:
        return None
    if raw is None or is_ambiguous(raw):
        return None
    path = unquote_to_bytes(raw)
    if path in _LISTED:
        return path
    found = _PLAIN.fullmatch(path.decode("latin-1"))
    if found is None or not _NOT_FOR_CLIENTS.isdisjoint(found[1].lower().split("/")):
        return None
    return path
