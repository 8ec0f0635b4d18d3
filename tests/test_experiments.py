import importlib.util
import json
import pathlib

import pytest

SCRIPTS = sorted((pathlib.Path(__file__).parents[1] / "experiments").glob("*.py"))


@pytest.mark.compiles
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_runs_and_writes_its_results(script, tmp_path):
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    record = module.main(module.Config.tiny(tmp_path))
    assert json.loads((tmp_path / "tiny.json").read_text()) == json.loads(json.dumps(record))
    assert (tmp_path / "tiny.png").stat().st_size > 0
