import pytest
from processes import in_two_processes


@pytest.mark.slow
def test_a_trainer_with_fsdp2_resumes_and_saves_its_weights_bit_for_bit(tmp_path):
    assert in_two_processes("fsdp2_trainer_run.py", tmp_path).count("equal: ") == 4
