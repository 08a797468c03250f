"""`make digests`: asks each image's registry for its digest, and writes down what it said (infra/image_digests.json)."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import httpx

from infra import pinned_images

_MANIFESTS = ", ".join(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
_HOSTS = {"docker.io": "registry-1.docker.io"}
_LIMIT_S = 30


class RegistryError(Exception):
    """A registry did not say what an image's digest is; the message names both."""


def main() -> None:
    """Writes all digests, or none. Raises RegistryError."""
    with httpx.Client(timeout=_LIMIT_S, follow_redirects=True) as client:
        record(pinned_images.REFERENCES, pinned_images.RECORD, client)


def record(references: Iterable[str], path: Path, client: httpx.Client) -> None:
    """Writes the digest of each reference, as its registry serves it now. Raises RegistryError; the file is as it was."""
    digests = {reference: digest(reference, client) for reference in references}
    path.write_text(json.dumps(digests, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def digest(reference: str, client: httpx.Client) -> str:
    """The digest of what a tag names now: of the index, where it names one for several platforms. Raises RegistryError."""
    host, _, rest = reference.partition("/")
    repository, _, tag = rest.rpartition(":")
    scheme = "http" if host.startswith(("localhost:", "127.0.0.1:")) else "https"
    url = f"{scheme}://{_HOSTS.get(host, host)}/v2/{repository}/manifests/{tag}"
    try:
        answer = client.get(url, headers={"Accept": _MANIFESTS})
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            token = _anonymous_token(answer.headers.get("WWW-Authenticate", ""), client)
            answer = client.get(url, headers={"Accept": _MANIFESTS, "Authorization": f"Bearer {token}"})
        answer.raise_for_status()
    except (httpx.HTTPError, KeyError, ValueError) as error:
        raise RegistryError(f"{reference}: no digest from {host}: {error}") from None
    found = f"sha256:{hashlib.sha256(answer.content).hexdigest()}"
    if (told := answer.headers.get("Docker-Content-Digest", found)) != found:
        raise RegistryError(f"{reference}: {host} calls {told} what has the digest {found}")
    return found


def _anonymous_token(challenge: str, client: httpx.Client) -> str:
    """What a public registry gives to everybody who asks as its challenge says."""
    asked = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    answer = client.get(asked.pop("realm"), params=asked).raise_for_status().json()
    return answer.get("token") or answer["access_token"]


if __name__ == "__main__":
    main()
