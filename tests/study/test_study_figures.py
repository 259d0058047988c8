"""Figures and tables of methods that lack what is drawn or listed."""

from study_records import failed_record, made_study, run_of

from hf_lpwd.study.analysis import analyse
from hf_lpwd.study.figures import draw_figures
from hf_lpwd.study.record import Record

RATES = (1e-3, 3e-3)


def drawn(records):
    study = analyse(records)
    (results,) = study.results.values()
    return {figure.name: figure for figure in draw_figures(results, study.baseline) if figure}


def test_a_heat_map_of_a_method_without_a_value_at_any_of_the_rates():
    """Its runs left the decay rate at its default, so that no cell of the grid is theirs."""
    grid = [
        run_of(
            "wd uniform", seed, 0.6 + 0.01 * seed + decay + 10 * rate, weight_decay=decay, learning_rate=rate
        )
        for seed in range(2)
        for decay in (0.01, 0.1)
        for rate in RATES
    ]
    other = [run_of("pwd linear", seed, 0.9, weight_decay=None) for seed in range(2)]
    assert drawn([*grid, *other])["grid"].alt == (
        "Validation accuracy in percent at each learning rate and decay rate. wd uniform: highest 73.5, "
        "lowest 62.5; pwd linear: no value at these rates."
    )


def test_a_method_whose_runs_all_failed_is_named():
    records = [Record.model_validate(record) for record in made_study(rates=RATES)]
    left = [record for record in records if record.method != "pwd linear"]
    failed = [
        Record.model_validate(failed_record(timing="pwd", schedule="linear", seed=seed)) for seed in range(5)
    ]
    study = analyse([*left, *failed])
    assert "No result: pwd linear. No setting has half of the seeds." in study.notes
    assert {figure.name for figure in draw_figures(study.results["digits, default model"], "pwd linear")} == {
        "decay", "grid", "layers", "opposing", "training",
    }  # fmt: skip
    assert not [note for note in analyse(left).notes if "No result" in note]
