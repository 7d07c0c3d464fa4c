"""Whether anything listens: the cheapest question there is, without an HTTP library."""

import asyncio
import contextlib


async def refuses(host: str, port: int, timeout: float) -> bool:
    """Whether nothing accepts connections there. No answer in time is no refusal: it may be busy."""
    return isinstance(await connect_error(host, port, timeout), ConnectionRefusedError)


async def connect_error(host: str, port: int, timeout: float) -> OSError | None:
    """What hinders a connection within `timeout` seconds; None also where there was no answer in time."""
    try:
        async with asyncio.timeout(timeout):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return None
    except OSError as error:
        return error
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None
