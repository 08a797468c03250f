"""What people read: paths, headings and words that exist, and releases that can be gone back to."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from local.paths import CHECKOUT
from tests.releases import RELEASES, Release, git

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    *(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_what_a_document_points_to_exists(document: str) -> None:
    text = (CHECKOUT / document).read_text()
    paths = re.findall(r"`((?:bench|docs|images|infra|local|loraserve|tests)/[\w./-]*)`", text)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    missing = [path for path in paths if not (CHECKOUT / path).exists()]
    assert [*missing, *(link for link in links if not (CHECKOUT / document).parent.joinpath(link).exists())] == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_link_to_a_heading_finds_it(document: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", (CHECKOUT / document).read_text())
    missing = [
        f"{path}#{anchor}"
        for path, anchor in links
        if anchor not in _anchors((CHECKOUT / document).parent / path if path else CHECKOUT / document)
    ]
    assert missing == []


def _anchors(document: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_make_help_lists_every_word_and_documents_name_no_other() -> None:
    makefile = (CHECKOUT / "Makefile").read_text()
    [phony] = re.findall(r"^\.PHONY: (.+)$", makefile, re.MULTILINE)
    targets = re.findall(r"^([a-z][\w-]*):", makefile, re.MULTILINE)
    assert sorted(phony.split()) == sorted(targets)
    help_ = subprocess.run(["make", "--silent", "help"], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    listed = {line.split()[1] for line in help_.stdout.splitlines()}
    assert set(targets) - listed == {"install"}
    texts = [(CHECKOUT / document).read_text() for document in DOCUMENTS]
    named = {word for text in texts for word in re.findall(r"(?:`|^)make ([a-z][\w-]*)", text, re.MULTILINE)}
    assert named - set(targets) == set()


@pytest.mark.parametrize("document", ["docs/threat-model.md", "docs/operations.md"])
def test_a_test_that_a_promise_names_exists(document: str) -> None:
    text = (CHECKOUT / document).read_text()
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text))
    missing = [
        f"{file}::{test}"
        for file, test in sorted(named)
        if not re.search(rf"^(?:async )?def {test}\(", (CHECKOUT / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_the_threat_model_promises_nothing_without_a_test() -> None:
    text = (CHECKOUT / "docs/threat-model.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| ") and "shown by" not in line]
    proofs = text.partition("## A stolen tenant key")[2]
    assert [row for row in rows if row in proofs and "::test_" not in row] == []


@pytest.mark.parametrize("release", RELEASES, ids=str)
def test_a_release_is_a_commit_of_this_history(release: Release) -> None:
    git("merge-base", "--is-ancestor", release.commit, "HEAD")
    project = tomllib.loads(git("show", f"{release.commit}:pyproject.toml").decode())["project"]
    assert project["version"] == release.version
    tagged = git("for-each-ref", "--format=%(*objectname)", f"refs/tags/{release.tag}").decode().strip()
    assert tagged in ("", release.commit), "a clone may lack the tag, and has no other one"


def test_the_changelog_has_every_release_and_the_version_is_none_of_them() -> None:
    released = [release.version for release in RELEASES]
    version = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["version"]
    sections = re.findall(r"^## \[(\d\S*)\]", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert version not in released, "a release is a commit: the next one has another version"
    # The commit that is to be a release cannot name itself.
    assert sections[::-1] == (released if ".dev" in version else [*released, version])
