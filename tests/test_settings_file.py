import pytest

from hf_lpwd.messages import BadInputError
from hf_lpwd.settings_file import read_settings

BOMB = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("a: 1\nb: [x, 2]\n", {"a": 1, "b": ["x", 2]}),
        ("a: &x {b: 1}\nc: *x", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_settings_by_name(tmp_path, text, expected):
    (tmp_path / "run.yaml").write_text(text)
    assert read_settings(str(tmp_path / "run.yaml")) == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.yaml", BOMB, r"its aliases \(\*name\) stand for too many values"),
        ("run.yaml", "a: &a [*a]", "stand for too many values"),
        ("run.yaml", "a: " + "[" * 9000, "nested too deeply"),
        ("run.json", '{"a": ' + "[" * 99000, "nested too deeply"),
        ("run.yaml", "seed: 1\nseed: 2", "it sets seed twice"),
        ("run.yaml", "- 1", "must hold settings by name, not a list"),
        ("run.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("run.yaml", "!!python/object/apply:os.system ['true']", "cannot be read"),
        ("missing.yaml", None, "cannot be read: No such file or directory"),
    ],
)
def test_what_is_no_file_of_settings_is_refused_in_one_line(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(BadInputError, match=message):
        read_settings(str(tmp_path / name))
