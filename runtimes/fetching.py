"""Fetches a picture from the web, with limits on its size and on the time."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.parse
import urllib.request

from detr_export.runtimes.errors import ImageError

MAX_BYTES = 64 * 2**20  # far above photographs; a file that never ends does not fill the memory
TIMEOUT = 60.0  # seconds for the whole file
_SCHEMES = ("http://", "https://")
_CHUNK = 1 << 16
_KEPT = "%/:=&?~#+!$,;'@()*[]"  # characters that an address may have as they are


def is_address(text: str) -> bool:
    """Whether a text is an address on the web, and no path."""
    return text.lower().startswith(_SCHEMES)


def fetch(address: str, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT) -> bytes:
    """The content of a file on the web. Redirections are followed, to http and https alone.

    Args:
        address: http:// or https://.
        max_bytes: of the content.
        timeout: for all of it, seconds.

    Raises:
        ImageError: there is no such server or file, or it is too large or too slow.
    """
    end = time.monotonic() + timeout
    try:
        request = urllib.request.Request(urllib.parse.quote(address, safe=_KEPT), headers={"User-Agent": "detr-export"})
        with _opener().open(request, timeout=timeout) as response:
            if int(response.headers.get("Content-Length") or 0) > max_bytes:
                raise _too_large(address, max_bytes)
            content = bytearray()
            while chunk := response.read1(_CHUNK):
                content += chunk
                if len(content) > max_bytes:
                    raise _too_large(address, max_bytes)
                if time.monotonic() > end:
                    raise TimeoutError
            return bytes(content)
    except urllib.error.HTTPError as error:
        error.close()
        raise ImageError(f"{address}: the server answered {error.code} {error.reason}; check the address") from error
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError) or "timed out" in str(reason):
            raise ImageError(
                f"{address} did not come within {timeout:g} seconds; try again, or download it first"
            ) from error
        text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
        raise ImageError(f"cannot fetch {address}: {text}; check the address and the network") from error


def _opener() -> urllib.request.OpenerDirector:
    """One that knows http and https alone. `build_opener` would also read local files and FTP."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.UnknownHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _too_large(address: str, max_bytes: int) -> ImageError:
    return ImageError(f"{address} is too large: expected at most {max_bytes / 2**20:g} MiB; download it and pass the file")
