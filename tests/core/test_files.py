import json
import stat

import pytest

from hf_lpwd.files import write_bytes, write_json


def test_writes_whole_and_makes_the_folder(tmp_path):
    path = tmp_path / "a" / "b.json"
    write_json(path, {"rate": 0.1, "name": "é"})
    assert path.read_text(encoding="utf-8") == '{\n  "rate": 0.1,\n  "name": "é"\n}\n'
    write_json(path, [1])
    assert json.loads(path.read_text()) == [1]
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    with pytest.raises(TypeError):
        write_bytes(path, "text")
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "1\n"


def test_others_may_read_it_as_any_new_file(tmp_path):
    plain, written = tmp_path / "plain", tmp_path / "written"
    plain.write_bytes(b"x")
    write_bytes(written, b"x")
    assert stat.S_IMODE(written.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)
