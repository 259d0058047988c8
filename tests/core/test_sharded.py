import pytest
from processes import in_two_processes


@pytest.mark.slow
def test_two_processes_with_fsdp2_and_ddp_train_and_resume_as_one():
    assert in_two_processes("sharded_run.py").count("equal: ") == 14
