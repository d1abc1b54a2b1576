"""The POST routes of the HTTP application, on bare ASGI. The GET routes are in `openai.cold_routes`."""

from router.app import Handler
from router.openai.chat import Chat
from router.openai.completions import Completions
from router.openai.embeddings import Embedder
from router.openai.generate import Generator
from router.openai.responses import Responses
from router.openai.tokenization import Tokenization


def routes(generator: Generator) -> dict[str, Handler]:
    """Return the handler of each path."""
    chat = Chat(generator)
    embedder = Embedder(generator)
    tokenization = Tokenization(generator)
    return {
        "/v1/chat/completions": chat.chat,
        "/v1/completions": Completions(generator).completion,
        "/v1/responses": Responses(generator, chat).respond,
        "/v1/embeddings": embedder.embeddings,
        "/v1/score": embedder.score,
        "/tokenize": tokenization.tokenize,
        "/detokenize": tokenization.detokenize,
    }
