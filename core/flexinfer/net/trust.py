"""What the user's environment says about the way out: proxies and certificate authorities."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

import certifi

from flexinfer.errors import InvalidInput
from flexinfer.net.policy import Origin

_BUNDLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")


def ssl_context(environ: Mapping[str, str]) -> ssl.SSLContext:
    """Return a context that verifies: with the authorities that the user names, else the public ones.

    Named by SSL_CERT_FILE, SSL_CERT_DIR, REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or PIP_CERT; all that are named count.

    Raises:
        InvalidInput: code `bad_settings`: a named file cannot be read as certificates.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies names and chains by default
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    named = [(name, environ[name]) for name in _BUNDLES if environ.get(name)]
    folder = environ.get("SSL_CERT_DIR", "")
    for name, path in named:
        try:
            if os.path.isdir(path):
                context.load_verify_locations(capath=path)
            else:
                context.load_verify_locations(cafile=path)
        except (OSError, ssl.SSLError) as error:
            raise InvalidInput(
                f"{name}={path}: expected a file of certificates ({error})", code="bad_settings"
            ) from error
    if folder and os.path.isdir(folder):
        context.load_verify_locations(capath=folder)
    if not named and not folder:
        context.load_default_certs()
        context.load_verify_locations(cafile=certifi.where())
    return context


def proxy_for(origin: Origin, environ: Mapping[str, str]) -> str:
    """Return the URL of the proxy that the user wants for *origin*; empty: ask directly.

    `https_proxy`, `http_proxy`, `all_proxy` and `no_proxy`, lower case before upper case.

    Raises:
        InvalidInput: code `bad_settings`: a proxy that is neither http nor https.
    """
    if _is_bypassed(origin, _variable(environ, "no_proxy")):
        return ""
    url = _variable(environ, f"{origin.scheme}_proxy") or _variable(environ, "all_proxy")
    if not url:
        return ""
    if "://" not in url:
        url = f"http://{url}"
    if urlsplit(url).scheme.lower() not in ("http", "https"):
        raise InvalidInput(
            f"proxy for {origin}: expected an http or https proxy, found "
            f"{urlsplit(url).scheme}://{urlsplit(url).hostname}",
            code="bad_settings",
        )
    return url


def split_credentials(url: str) -> tuple[str, tuple[str, str] | None]:
    """Return *url* without its user part, and the user and password that stood in it."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, None
    _, _, place = parts.netloc.rpartition("@")
    pair = unquote(parts.username), unquote(parts.password or "")
    return parts._replace(netloc=place).geturl(), pair


def _variable(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _is_bypassed(origin: Origin, exceptions: str) -> bool:
    for one in exceptions.split(","):
        name = one.strip().lower()
        if not name:
            continue
        if name == "*":
            return True
        host, _, port = name.rpartition(":") if name.count(":") == 1 else (name, "", "")
        if port and port != str(origin.port):
            continue
        host = (host or name).lstrip("*").lstrip(".")
        if origin.host == host or origin.host.endswith(f".{host}"):
            return True
    return False
