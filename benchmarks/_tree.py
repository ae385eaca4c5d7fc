"""Which checkout of eqdiff is measured, installed or not."""

import importlib.metadata
import sys
import tempfile
from pathlib import Path


def use_tree(tree: Path) -> None:
    """Imports eqdiff from a checkout, before anything else has.

    Its version is asked for at import, so where it is not installed a record of it is made in a
    temporary folder: nothing need be installed on a machine that is borrowed.
    """
    if not (tree / "eqdiff" / "__init__.py").is_file():
        raise SystemExit(f"{tree} holds no eqdiff: give the root of a checkout.")
    sys.path.insert(0, str(tree))
    try:
        importlib.metadata.version("eqdiff")
    except importlib.metadata.PackageNotFoundError:
        folder = Path(tempfile.mkdtemp(prefix="eqdiff-tree-"))
        record = folder / "eqdiff-0.dist-info"
        record.mkdir()
        (record / "METADATA").write_text("Metadata-Version: 2.1\nName: eqdiff\nVersion: 0\n")
        sys.path.append(str(folder))
