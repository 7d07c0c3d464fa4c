"""What makes an answer of an engine a real one."""

from typing import Any


def fault_of_generation(answer: Any) -> str:
    """What this answer to a request for one token lacks: "a choice", "a token", or "" when it is whole.

    A model may rightly answer with an empty text after one special token, so `usage`, where it counts,
    decides; without it, a reason to finish or some text does.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return "a choice"
    usage = answer.get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if isinstance(count, int | float):
        return "" if count >= 1 else "a token"
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return "" if choice.get("finish_reason") or text else "a token"


def text_of(answer: Any) -> str:
    """What a whole answer says, thoughts of a reasoning model included."""
    choice = answer["choices"][0]
    message = choice.get("message")
    if not isinstance(message, dict):
        return str(choice.get("text") or "")
    parts = (message.get(name) for name in ("reasoning_content", "reasoning", "content"))
    return " ".join(part for part in parts if isinstance(part, str) and part)
