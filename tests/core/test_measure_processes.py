from processes import in_two_processes


def test_sharded_and_replicated_models_are_measured_as_one():
    assert in_two_processes("measured_run.py").count("measured: ") == 4
