"""What the build adds to the metadata once the project has an address: URLs, and links that work outside of the tree.

The address is `address` in pyproject.toml, or what GPUOPT_ADDRESS says, as ``nox -s release -- --address`` does. Without one
the metadata has no URLs, and the README is taken as it is.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)")
"""A link or a picture of Markdown, whose target is a path."""


class Address(MetadataHookInterface):  # type: ignore[misc] # hatchling is there while a build runs
    """Writes `urls` and `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """See hatchling."""
        text = Path(self.root, "README.md").read_text(encoding="utf-8")
        address, tag = os.environ.get("GPUOPT_ADDRESS") or self.config["address"], f"v{metadata['version']}"
        if address:
            if not re.fullmatch(r"https://[^\s/]+(/[^\s/]+)+", address):
                raise ValueError(f"address: {address!r}, expected one such as 'https://github.com/OWNER/gpuopt'")
            metadata["urls"] = {
                "Source": address,
                "Documentation": f"{address}/blob/{tag}/docs/guide.md",
                "Changelog": f"{address}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{address}/issues",
            }
            text = RELATIVE.sub(
                lambda link: f"{link[1]}{link[2]}({address}/{'raw' if link[1] else 'blob'}/{tag}/{link[3]})", text
            )
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
