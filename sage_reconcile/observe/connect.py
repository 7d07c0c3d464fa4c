"""Whether anything listens: the cheapest question there is, without an HTTP library."""

import asyncio
import contextlib


async def refuses(host: str, port: int, timeout: float) -> bool:
    """Whether nothing accepts connections there. No answer in time is no refusal: it may be busy."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except ConnectionRefusedError:
        return True
    except (TimeoutError, OSError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return False
