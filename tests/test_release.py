"""What a release must not forget: the version stands in four files."""

import pathlib
import re
import tomllib


ROOT = pathlib.Path(__file__).parent.parent


def test_every_file_names_the_same_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M) == [version]
    cited = re.findall(r"version = \{(.+?)\}", (ROOT / "docs" / "citing.md").read_text())
    assert cited == [version]
    versions = re.findall(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == version
