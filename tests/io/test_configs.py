"""What configs tell of the machine that they were written on."""

import json
from pathlib import Path

from promptnet.io.configs import drop_sources


def test_configs_forget_where_networks_were_loaded_from(tmp_path: Path):
    (tmp_path / "unet").mkdir()
    config, other = tmp_path / "unet" / "config.json", tmp_path / "list.json"
    config.write_text(json.dumps({"_class_name": "UNet", "_name_or_path": str(tmp_path / "base")}))
    other.write_text('["_name_or_path"]')
    drop_sources(tmp_path)
    assert json.loads(config.read_text()) == {"_class_name": "UNet"}
    assert other.read_text() == '["_name_or_path"]'


def test_configs_without_a_source_are_not_written(tmp_path: Path):
    config = tmp_path / "config.json"
    config.write_text('{"width":3}')
    before = config.stat().st_mtime_ns
    drop_sources(tmp_path)
    assert (config.read_text(), config.stat().st_mtime_ns) == ('{"width":3}', before)
