"""POST /tokenize and /detokenize: convert a prompt to token ids, and back."""

import msgspec

from router.http.exchange import Exchange
from router.openai.body import too_long
from router.openai.conversation import conversation, thinking_variables
from router.openai.generate import Generator
from router.openai.sampling import check_ids
from router.openai.tokenization_schema import TokenizeBody, parse_detokenize, parse_tokenize
from router.openai.tool_schema import tools_of


class Tokenization:
    """Serves both endpoints."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._model = generator.model

    async def tokenize(self, exchange: Exchange) -> None:
        """Serve /tokenize: return the token ids of a prompt or a conversation."""
        body = parse_tokenize(await exchange.read_body(self._generator.check_body))
        await self._admit(exchange, body.model)
        token_ids = await self._encode(body)
        texts = self._model.token_texts
        strings = [texts.token_bytes(i).decode(errors="replace") for i in token_ids] if body.return_token_strs else None
        exchange.num_tokens = (len(token_ids), 0)
        answer = {"count": len(token_ids), "max_model_len": self._generator.max_model_len or None}
        exchange.send(200, msgspec.json.encode({**answer, "tokens": token_ids, "token_strs": strings}))

    async def detokenize(self, exchange: Exchange) -> None:
        """Serve /detokenize: return the text of token ids, including special tokens."""
        body = parse_detokenize(await exchange.read_body(self._generator.check_body))
        await self._admit(exchange, body.model)
        limit = self._generator.max_model_len
        if limit and len(body.tokens) > limit:
            raise too_long(limit, f"there are {len(body.tokens)}", "tokens")
        check_ids(body.tokens, self._model.facts, "tokens")
        exchange.send(200, msgspec.json.encode({"prompt": await self._model.decode(body.tokens)}))

    async def _encode(self, body: TokenizeBody) -> list[int]:
        limit = self._generator.max_model_len
        if body.messages is not None:
            self._model.check_sizes(body.messages, limit, "messages")
            tools = tools_of(body.tools, None, parallel=None)
            variables = thinking_variables(None, body.chat_template_kwargs)
            return await self._model.encode_chat(conversation(body.messages, tools, variables), limit)
        framed = body.add_special_tokens is not False
        return await self._model.encode_text(body.prompt or "", limit, framed=framed)

    async def _admit(self, exchange: Exchange, name: str | None) -> None:
        """Check the model's name, if the body has one, and charge one request but no tokens to the tenant."""
        if name is not None:
            self._model.check_name(name)
        exchange.model = name or self._model.names[0]
        await exchange.account.admit(exchange.model, 0)
