"""Prints where pip would download given packages from; run by path in its own process.

    python -P pip_links.py NAME==VERSION ...   →   {"links": {NAME==VERSION: {url, sha256}}, "cert"}

It reads index pages only, where `pip install --dry-run --report` of pip 23 downloads whole wheels.
pip's finder is not a public interface: when it is not as expected here, this process fails and
the caller lets `pip download` do the work. It imports nothing of Moulin and never installs.
"""

import json
import sys
from importlib import import_module
from typing import Any


def find_links(wanted: list[str]) -> dict[str, Any]:
    """Return address and digest of the wheel of each `NAME==VERSION`; a missing one is left out."""
    command = import_module("pip._internal.commands").create_command("download")
    specifiers = import_module("pip._vendor.packaging.specifiers")
    arguments = ["--only-binary", ":all:", "--no-deps", "--no-input", "--quiet"]
    options, _ = command.parse_args([*arguments, *wanted])
    links: dict[str, dict[str, str]] = {}
    with command.main_context():
        session = command.get_default_session(options)
        finder = command._build_package_finder(options=options, session=session)  # noqa: SLF001 - said above
        for requirement in wanted:
            name, _, version = requirement.partition("==")
            specifier = specifiers.SpecifierSet(f"=={version}")
            found = finder.find_best_candidate(name, specifier).best_candidate
            if found is not None:
                sha256 = found.link.hash if found.link.hash_name == "sha256" else ""
                links[requirement] = {"url": found.link.url_without_fragment, "sha256": sha256}
    return {"links": links, "cert": options.cert or ""}


if __name__ == "__main__":
    json.dump(find_links(sys.argv[1:]), sys.stdout)
