"""Images from URLs: only from allowed names, only to checked addresses, bounded in time and size.

A name is resolved once. If all its addresses may be connected to, the connection goes to them and
nowhere else: a name that resolves to something else a moment later gains nothing. Redirects are not
followed, no proxy, cookie or decompression is used.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from urllib.parse import urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

CHUNK_BYTES = 2**16
# A name or an address in a URL: nothing that parsers read in different ways.
PLAIN_URL = re.compile(
    r"https?://(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?([/?][!-\[\]-~]*)?"
)

Resolve = Callable[[str], Awaitable[Sequence[str]]]


class FetchError(Exception):
    """An image that is not fetched; the message names no address."""


class Fetcher:
    """Fetches images.

    Args:
        hosts: allowed names: `example.com`, `*.example.com`, or `*`.
        networks: private networks in which they may lie.
        max_bytes: of an image.
        timeout_s: seconds for an image, from the name's look-up on.
        resolve: from a name to its addresses.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        networks: Sequence[IPv4Network | IPv6Network],
        max_bytes: int,
        timeout_s: float,
        resolve: Resolve | None = None,
    ) -> None:
        self._hosts = tuple(hosts)
        self._networks = tuple(networks)
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._resolve = resolve or look_up

    async def fetch(self, url: str) -> bytes:
        """Return what lies at a URL.

        Raises:
            FetchError: a malformed URL, a name or an address that is not allowed, a redirect or
                another status than 200, too many bytes, too long a time.
        """
        host = self._checked_host(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._get(url, host, await self._checked_addresses(host))
        except TimeoutError as error:
            raise FetchError(f"the image did not arrive in {self._timeout_s:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise FetchError("the image's host could not be reached, or broke off") from error

    def _checked_host(self, url: str) -> str:
        # A fragment is never sent and is no way to hide a host.
        if not PLAIN_URL.fullmatch(url.partition("#")[0]):
            raise FetchError("this is no plain http or https URL: scheme, host, path, query")
        try:
            host, _ = (urlsplit(url).hostname or "").rstrip("."), urlsplit(url).port
        except ValueError as error:
            raise FetchError("this is no URL") from error
        if not any(_matches(host, pattern) for pattern in self._hosts):
            raise FetchError("images are not fetched from this host: the server has a list")
        return host

    async def _checked_addresses(self, host: str) -> list[str]:
        try:
            addresses = [str(ipaddress.ip_address(host))]
        except ValueError:
            addresses = list(await self._resolve(host))
        if not addresses or not all(self._may_connect(address) for address in addresses):
            raise FetchError("this host has an address that images are not fetched from")
        return addresses

    def _may_connect(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        if any(address in network for network in self._networks):
            return True
        # 6to4, Teredo and NAT64 carry an IPv4 address that a gateway would connect to.
        tunnelled = isinstance(address, IPv6Address) and any(
            address in network for network in TUNNELS
        )
        return address.is_global and not address.is_multicast and not tunnelled

    async def _get(self, url: str, host: str, addresses: Sequence[str]) -> bytes:
        connector = aiohttp.TCPConnector(
            resolver=_Pinned(host, addresses), use_dns_cache=False, force_close=True
        )
        async with (
            aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                headers={"Accept": "image/*", "Accept-Encoding": "identity"},
                trust_env=False,
            ) as session,
            session.get(url, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise FetchError(f"the image's host answered with status {response.status}")
            content = bytearray()
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                content += chunk
                if len(content) > self._max_bytes:
                    raise FetchError(f"the image has more than {self._max_bytes} bytes")
            return bytes(content)


TUNNELS = tuple(
    IPv6Network(text) for text in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)


class _Pinned(AbstractResolver):
    """Answers with addresses that were checked, for the one host that they belong to."""

    def __init__(self, host: str, addresses: Sequence[str]) -> None:
        self._host = host
        self._addresses = addresses

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        if host.rstrip(".").lower() != self._host:
            raise OSError("another host than the one that was checked")
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in self._addresses
        ]

    async def close(self) -> None:
        """Holds nothing."""


async def look_up(host: str) -> list[str]:
    """The addresses of a name, from the system's resolver."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _matches(host: str, pattern: str) -> bool:
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return host.endswith(pattern[1:])
    return host == pattern
