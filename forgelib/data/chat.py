"""One request to an OpenAI-compatible chat endpoint: its answer or its fault, and what it must be taken to have cost.

The key is known to the client alone. Whatever a server says is handed on with the key struck out, and no exception of
the client, which holds the request and its headers, leaves this file.
"""

import asyncio
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from time import time

#: Faults that pass: the server is busy, failed, or gave up waiting for another.
PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
#: A gateway that gave up waiting: the model behind it may have written, and been paid, all the same.
GATEWAY_TIMEOUTS = frozenset({504, 524})
LONGEST_WAIT_S = 3600.0


@dataclass(frozen=True)
class Outcome:
    """text: what the model wrote; fault: "" or why there is no answer ("429", "timeout", "connection" ...), in words in
    `told`; retry: whether the fault may pass; retry_after: seconds, by the server. dollars: the cost, its upper bound
    where the server did not tell it."""

    text: str = ""
    fault: str = ""
    told: str = ""
    retry: bool = False
    retry_after: float = 0.0
    tokens_in: int = 0
    tokens_out: int = 0
    dollars: float = 0.0


class Chat:
    """A client for `base_url` with a timeout in seconds for a whole request. It never retries by itself."""

    def __init__(self, key: str, base_url: str, timeout_seconds: float):
        import openai

        self.timeout_seconds = timeout_seconds
        self._client = openai.AsyncOpenAI(api_key=key, base_url=base_url, timeout=timeout_seconds, max_retries=0)

    async def close(self) -> None:
        await self._client.close()

    async def ask(
        self, model: str, prompt: str, *, max_tokens: int, temperature: float, prices: tuple[float, float], bound: float
    ) -> Outcome:
        """Send one prompt. prices: dollars per million tokens in and out, sent along as the most that a provider may
        take; bound: dollars to count where the cost stays unknown."""
        import openai

        try:
            async with asyncio.timeout(self.timeout_seconds):
                answer = await self._client.chat.completions.with_raw_response.create(
                    model=model,
                    messages=[{"role": "user", "content": prompt}],
                    max_tokens=max_tokens,
                    temperature=temperature,
                    extra_body={"provider": {"max_price": {"prompt": prices[0], "completion": prices[1]}}},
                )
            outcome = read_answer(answer.text, prices, bound)
        except (TimeoutError, openai.APITimeoutError) as error:
            spent = 0.0 if _never_sent(error) else bound
            outcome = Outcome(
                fault="timeout", told=f"no answer in {self.timeout_seconds:g} s", retry=True, dollars=spent
            )
        except openai.APIStatusError as error:
            outcome = _status(error.status_code, error.body, error.response.headers, bound)
        except openai.APIConnectionError as error:
            spent = 0.0 if _never_sent(error) else bound
            told = f"the connection failed ({type(error.__cause__ or error).__name__})"
            outcome = Outcome(fault="connection", told=told, retry=True, dollars=spent)
        except openai.OpenAIError as error:
            outcome = Outcome(fault=type(error).__name__, told="the client cannot read the answer", dollars=bound)
        key = self._client.api_key
        told = outcome.told.replace(key, "[key]")[:200]
        return replace(outcome, text=outcome.text.replace(key, "[key]"), told=told)


def read_answer(body: str, prices: tuple[float, float], bound: float) -> Outcome:
    """An answer with status 200: a text, or a fault that came up while the model wrote."""
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        return Outcome(fault="no JSON", told="the server's answer is no JSON object", dollars=bound)
    tokens_in, tokens_out, dollars = _usage(answer.get("usage"), prices, bound)
    paid = Outcome(tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars)
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    error = answer.get("error") or choice.get("error")
    if error:
        code = error.get("code") if isinstance(error, dict) else None
        failed = _status(code if isinstance(code, int) else 500, error, {}, bound)
        return replace(failed, tokens_in=tokens_in, tokens_out=tokens_out, dollars=dollars)
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        return replace(paid, fault="empty answer", told="the model wrote nothing")
    return replace(paid, text=text)


def _usage(usage: object, prices: tuple[float, float], bound: float) -> tuple[int, int, float]:
    """(tokens in, tokens out, dollars): the cost that is told, else tokens times prices, else the bound."""
    usage = usage if isinstance(usage, dict) else {}
    told = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    known = all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in told)
    tokens = told if known else [0, 0]
    cost = usage.get("cost")
    if isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost) and cost >= 0:
        return *tokens, float(cost)
    return *tokens, (tokens[0] * prices[0] + tokens[1] * prices[1]) / 1e6 if known else bound


def _status(code: int, body: object, headers: Mapping[str, str], bound: float) -> Outcome:
    told = body.get("message") if isinstance(body, dict) else body
    return Outcome(
        fault=str(code),
        told=f"{code} {told or ''}".strip(),
        retry=code in PASSING,
        retry_after=_retry_after(headers.get("retry-after", "")),
        dollars=bound if code in GATEWAY_TIMEOUTS else 0.0,
    )


def _retry_after(value: str) -> float:
    """Seconds from a Retry-After header, which holds seconds or a date; 0 without one."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S) if math.isfinite(seconds) else 0.0


def _never_sent(error: BaseException) -> bool:
    """Whether the connection was not even made, so that nothing can have been paid."""
    return type(error.__cause__).__name__ in {"ConnectError", "ConnectTimeout", "PoolTimeout"}
