"""A judge behind an address, in the form of OpenAI's API: `vlm serve`, vLLM, a company's."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import aiohttp

from eval.judge import MAX_TOKENS, Chat
from vlm.errors import UserError

AT_ONCE = 8
ATTEMPTS = 5
LONGEST_WAIT_S = 30.0
TIMEOUT = aiohttp.ClientTimeout(total=600, sock_connect=20)


class EndpointJudge:
    """Asks `ADDRESS/chat/completions`, greedily, several at once.

    What is busy or broken for a moment is asked again, `ATTEMPTS` times in all.

    Args:
        model: None: the only model that `ADDRESS/models` lists.
        wait_s: seconds before the second attempt; twice as many before each further one.
    Raises:
        UserError: the endpoint cannot be reached, refuses, or lists several models.
    """

    def __init__(
        self, address: str, model: str | None, key: str | None, wait_s: float = 1.0
    ) -> None:
        self.address = address.rstrip("/")
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._wait_s = wait_s
        self.name = model or asyncio.run(self._only_model())

    def write(self, chats: Sequence[Chat]) -> list[str]:
        """The endpoint's answers, in order."""
        return asyncio.run(self._write(chats))

    async def _write(self, chats: Sequence[Chat]) -> list[str]:
        slots = asyncio.Semaphore(AT_ONCE)
        async with self._session() as session:

            async def one(chat: Chat) -> str:
                body = {
                    "model": self.name,
                    "messages": chat,
                    "temperature": 0,
                    "max_tokens": MAX_TOKENS,
                }
                async with slots:
                    answer = await self._ask(session, "POST", "/chat/completions", body)
                try:
                    return str(answer["choices"][0]["message"]["content"] or "")
                except (KeyError, IndexError, TypeError):
                    raise UserError(f"{self.address} gave no answer: {answer!r:.200}") from None

            return list(await asyncio.gather(*map(one, chats)))

    async def _only_model(self) -> str:
        async with self._session() as session:
            listed = await self._ask(session, "GET", "/models", None)
        try:
            names = [entry["id"] for entry in listed["data"]]
        except (KeyError, TypeError):
            names = []
        if len(names) != 1:
            raise UserError(
                f"{self.address} lists {len(names)} models ({', '.join(names[:5])}): "
                "name the judge's with --judge-model"
            )
        return str(names[0])

    def _session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(headers=self._headers, timeout=TIMEOUT)

    async def _ask(self, session: aiohttp.ClientSession, method: str, path: str, body: Any) -> Any:
        """One request, repeated while the endpoint is busy.

        Raises:
            UserError: it refuses, or was busy each time.
        """
        url, problem = self.address + path, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(min(self._wait_s * 2 ** (attempt - 1), LONGEST_WAIT_S))
            try:
                async with session.request(method, url, json=body) as response:
                    if response.status == 200:
                        return await response.json(content_type=None)
                    problem = f"{response.status} {(await response.text())[:200]}"
                    if response.status != 429 and response.status < 500:
                        raise UserError(f"the judge at {url} refuses: {problem}")
            except (aiohttp.ClientError, TimeoutError, json.JSONDecodeError) as error:
                problem = f"{type(error).__name__} {error}"
        raise UserError(f"the judge at {url} did not answer in {ATTEMPTS} attempts: {problem}")
