"""The multiple-choice part of a report: what is shown, in which order, and that it is escaped."""

from __future__ import annotations

from rich.console import Console

from kvfix.report.questions import boards, table


def result(metric: str, subtask: str | None, scoring: str, value: float, **more: object) -> dict:
    return {
        "task": "mcq",
        "dataset": "blink",
        "subtask": subtask,
        "scoring": scoring,
        "site": None,
        "metric": metric,
        "value": value,
        "ci": [value - 0.1, value + 0.1],
        "n": 20,
        "chance": 0.5,
        "unparsed": 0.25 if scoring == "generation" else 0.0,
        "letters": {"A": 15, "B": 0, "unparsed": 5},
        "answers": {"A": 8, "B": 12},
        **more,
    }


RUN = {
    "results": [
        result(metric, subtask, scoring, value)
        for scoring, value in (("generation", 0.3), ("logprob", 0.6))
        for metric, subtask in (
            ("accuracy_macro", None),
            ("accuracy_micro", None),
            ("accuracy", "Jigsaw"),
            ("accuracy", "Art_Style"),
        )
    ]
    + [{"task": "cosegmentation", "dataset": "scenes", "site": "value", "metric": "x", "value": 1}],
    "without_readout": {"blink": {"no rule for Jigsaw": 20, "markers not found": 3}},
}


def test_subtasks_come_first_and_the_means_last() -> None:
    [board] = boards(RUN)
    assert [line.name for line in board.lines] == ["Art_Style", "Jigsaw", "macro", "micro"]
    assert [line.mean for line in board.lines] == [False, False, True, True]
    line = board.lines[0]
    assert line.generation.text == "30.0 [20–40]" and line.logprob.text == "60.0 [50–70]"
    assert line.letters == "A 15 · ? 5" and line.answers == "A 8 · B 12"
    assert (line.unparsed, line.chance_text) == (0.25, "50")
    assert board.without_readout[0] == ("no rule for Jigsaw", 20)


def test_a_run_without_questions_has_no_board() -> None:
    assert boards({"results": RUN["results"][-1:]}) == [] and boards({}) == []


def test_what_could_not_be_computed_is_a_dash() -> None:
    rows = [{**r, "value": None, "ci": None, "chance": None} for r in RUN["results"][:1]]
    [board] = boards({"results": rows})
    assert board.lines[0].generation.text == board.lines[0].chance_text == "–"
    assert board.lines[0].logprob.text == "–"


def test_the_table_fits_100_columns_and_is_no_markup() -> None:
    rows = [{**r, "subtask": r["subtask"] and "[red]x[/red]"} for r in RUN["results"][:-1]]
    console = Console(width=100, record=True, file=None, force_terminal=False)
    with console.capture() as shown:
        for board in boards({"results": rows}):
            console.print(table(board))
    text = shown.get()
    assert "[red]x[/red]" in text and max(map(len, text.splitlines())) <= 100
    assert "letters of the right answers: A 8 · B 12" in text
