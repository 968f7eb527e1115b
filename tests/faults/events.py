"""What happens to a run in docs/reliability.md, and the test of each event."""

from dataclasses import dataclass

_HERE = "tests/faults"
_CLI = "tests/cli"
ALL = "every finished checkpoint"
WHOLE_RUN = "the table of an uninterrupted run, after resuming"


@dataclass(frozen=True)
class Event:
    """One thing that happens while the program runs."""

    status: str
    kept: str
    test: str  # file::function


EVENTS: dict[str, Event] = {
    "a file of the series is cut off at any place": Event(
        "1", "everything computed before", f"{_HERE}/test_truncated.py::test_checkpoints"
    ),
    "the data file is cut off at any place": Event(
        "1", "everything computed before", f"{_HERE}/test_truncated.py::test_data"
    ),
    "the journal is cut off at any place": Event(
        "0", WHOLE_RUN, f"{_HERE}/test_truncated.py::test_the_journal"
    ),
    "a line of the journal has a valid checksum and invalid content": Event(
        "1",
        "every finished checkpoint but that one; line and key are named",
        "tests/results/test_strange_content.py::test_what_the_message_suggests_works",
    ),
    "a manifest or a plan file has invalid content": Event(
        "1",
        "everything; file and key are named",
        "tests/results/test_strange_content.py::test_a_plan_file",
    ),
    "the manifest is cut off at any place": Event(
        "0",
        "table and journal; it is written again",
        f"{_HERE}/test_truncated.py::test_the_manifest_is_written_again",
    ),
    "the next checkpoint vanishes, shrinks, or gets other tensors": Event(
        "1", ALL, f"{_HERE}/test_in_the_run.py::test_the_next_checkpoint"
    ),
    "the same, with `--on-error skip`": Event(
        "3", ALL, f"{_HERE}/test_in_the_run.py::test_the_next_checkpoint_is_skipped"
    ),
    "a checkpoint changes while it is analyzed": Event(
        "1", "all before it, not its own numbers",
        f"{_HERE}/test_in_the_run.py::test_the_checkpoint_at_hand",
    ),
    "a finished checkpoint changes later": Event(
        "1", ALL, f"{_CLI}/test_resume.py::test_a_finished_checkpoint_that_changed_is_refused"
    ),
    "the series' folder is removed": Event(
        "1", ALL, f"{_HERE}/test_in_the_run.py::test_the_whole_series"
    ),
    "the output's folder is removed": Event(
        "1", "nothing: it held journal and table",
        f"{_HERE}/test_in_the_run.py::test_the_outputs_folder",
    ),
    "the disk is full in the middle of the run": Event(
        "1",
        WHOLE_RUN,
        f"{_HERE}/test_full_disk.py::test_finished_checkpoints_are_kept_and_the_run_resumes",
    ),
    "the disk is full at the start": Event(
        "1", "nothing is left behind", f"{_HERE}/test_full_disk.py::test_a_disk_without_any_room"
    ),
    "a limit on the size of files (`ulimit -f`)": Event(
        "1", WHOLE_RUN, f"{_CLI}/test_streams.py::test_a_disk_that_is_full_keeps_what_is_finished"
    ),
    "the output is on a read-only file system": Event(
        "1", "detected before any work",
        f"{_HERE}/test_full_disk.py::test_a_file_system_that_may_only_be_read",
    ),
    "the output's folder is not writable": Event(
        "1", "detected before any work", f"{_CLI}/test_permissions.py::test_no_permission_to_write"
    ),
    "a file is not readable": Event(
        "1", "everything computed before", f"{_CLI}/test_permissions.py::test_no_permission_to_read"
    ),
    "stdout is closed, and the table goes there": Event(
        "1", "a message on stderr",
        f"{_CLI}/test_streams.py::test_a_closed_stdout_loses_no_result_without_a_word",
    ),
    "the reader of a pipe exits": Event(
        "141", "what it read", f"{_CLI}/test_streams.py::test_head_ends_it_silently"
    ),
    "stdout, stderr or both are closed, with `-o FILE`": Event(
        "0", "the whole table",
        f"{_HERE}/test_closed_streams.py::test_with_a_file_no_stream_is_needed",
    ),
    "stdout and stderr are closed, without a file": Event(
        "1", "nothing, and the status says so",
        f"{_HERE}/test_closed_streams.py::test_both_closed_and_data_on_stdout",
    ),
    "INT, TERM, HUP, XCPU, USR1 or USR2": Event(
        "130, 143, 129, 152, 138, 140", ALL, f"{_CLI}/test_interrupts.py::test_status_and_one_line"
    ),
    "the same during one long LAPACK call": Event(
        "130, 143, 138, 140",
        f"{ALL}, within the grace of 5 s",
        f"{_HERE}/test_long_call.py::test_the_status_and_the_table_of_what_is_finished",
    ),
    "the same during one C call that holds Python's lock": Event(
        "137",
        "the journal: after the grace of 5 s a second process kills it",
        f"{_HERE}/test_last_resort.py::test_it_is_killed_after_the_grace",
    ),
    "children of the user's code end, such as a DataLoader's workers": Event(
        "0",
        "the whole table",
        f"{_CLI}/test_signals.py::test_signals_that_ask_for_nothing_end_nothing",
    ),
    "a second Ctrl-C": Event(
        "130",
        "the journal; it ends at once",
        f"{_HERE}/test_long_call.py::test_a_second_ctrl_c_ends_it_at_once",
    ),
    "`kill -9` at any instant": Event(
        "137", WHOLE_RUN, f"{_CLI}/test_resume.py::test_killed_at_any_instant"
    ),
    "`kill -9` while a file is being written": Event(
        "137",
        "its temporary file is removed by the next run",
        f"{_CLI}/test_left_behind.py::test_analyze",
    ),
    "`kill -9` of `submit`": Event(
        "137",
        f"{ALL}; its workers stop",
        f"{_CLI}/test_submit.py::test_workers_end_with_a_submission_that_is_killed",
    ),
    "a `matplotlibrc` in the current folder: another style, LaTeX, a pipe": Event(
        "0",
        "the figure as without it",
        f"{_CLI}/test_plot.py::test_settings_of_matplotlib_have_no_effect",
    ),
    "a name that a terminal would obey, in a table": Event(
        "0",
        "CSV shows escapes; JSON lines and Parquet hold the name",
        f"{_CLI}/test_hostile_names.py::test_a_table_holds_nothing_that_steers_a_terminal",
    ),
    "a name that a spreadsheet would compute (`=1+1`)": Event(
        "0",
        "the name, unchanged; a note names it",
        f"{_CLI}/test_hostile_names.py::test_a_name_that_is_a_formula_stays_what_it_is_and_is_noted",
    ),
    "the model's code calls `os._exit` or `sys.exit`, or raises KeyboardInterrupt": Event(
        "1", ALL, f"{_HERE}/test_exits.py::test_the_model_ends_the_process"
    ),
    "the same in a worker of `submit`, even from C": Event(
        "1", ALL, f"{_HERE}/test_exits.py::test_a_worker_that_the_model_ends_leaves_a_gap"
    ),
    "memory runs out (`ulimit -v`)": Event(
        "1", ALL, f"{_HERE}/test_exits.py::test_a_checkpoint_larger_than_the_address_space"
    ),
    "a limit on open files (`ulimit -n`)": Event(
        "1", ALL, f"{_HERE}/test_exits.py::test_a_limit_on_open_files"
    ),
    "a second process on the same output": Event(
        "1",
        "the first continues; the second names host and process",
        f"{_CLI}/test_resume.py::test_two_processes_on_one_output",
    ),
    "the same from a host whose clock is ahead, without flock": Event(
        "1",
        "the first continues",
        "tests/results/test_lock.py::"
        "test_without_flock_a_host_whose_clock_is_ahead_steals_no_live_lock",
    ),
    "the output's name is a link": Event(
        "0",
        "the link; the file that it leads to is written",
        f"{_CLI}/test_links.py::test_a_table_is_written_through",
    ),
    "something that is not a file has the output's name": Event(
        "1", "what is there", f"{_CLI}/test_links.py::test_what_is_not_a_file_is_refused_and_stays"
    ),
    "a name of the output that is too long for the file system": Event(
        "1", "detected before any work", f"{_CLI}/test_links.py::test_names_that_are_too_long"
    ),
    "`--spectra` names the folder that holds the series (`--spectra .`)": Event(
        "1",
        "every checkpoint: only singular values of localrank are replaced by others",
        f"{_CLI}/test_spectra_folder.py::"
        "test_the_checkpoints_are_not_replaced_by_their_singular_values",
    ),
    "kept singular values are missing, or belong to other settings, weights or checkpoints": Event(
        "0",
        "the table; they are computed again by the next run",
        f"{_CLI}/test_spectra_folder.py::"
        "test_resuming_takes_no_other_values_for_a_checkpoints_own",
    ),
    "a journal or manifest is a link to another program's file": Event(
        "1",
        "what is there, even with `--overwrite`",
        f"{_CLI}/test_links.py::test_a_link_beside_the_table_to_another_programs_file",
    ),
    "a pipe in place of kept singular values": Event(
        "1",
        "what is there",
        f"{_CLI}/test_links.py::test_a_pipe_in_place_of_a_file_is_not_waited_for",
    ),
    "the lowest versions that `pyproject.toml` allows are installed": Event(
        "0",
        "every command, as with the newest (`make test-lowest`)",
        f"{_CLI}/test_main.py::test_help",  # one of those that it runs
    ),
    "a pipe or a device in place of `config.json`, with `--model hf`": Event(
        "1",
        "detected before any work",
        "tests/model/test_hf_hostile.py::test_it_ends_in_one_line_and_does_nothing_else",
    ),
    "`compress` is interrupted, and its weights change before it resumes": Event(
        "0",
        "the other budgets; that one is computed again",
        f"{_CLI}/test_compress.py::"
        "test_weights_that_changed_since_an_interruption_are_computed_again",
    ),
    "`compress.unfinished.json` has invalid content": Event(
        "1",
        "what is there; the key is named",
        f"{_CLI}/test_compress.py::test_what_an_interrupted_run_left_is_checked",
    ),
    "a link or a folder has the name of a result of `compress`": Event(
        "1",
        "what is there, even with `--overwrite`",
        f"{_CLI}/test_compress.py::test_results_are_not_written_through_links",
    ),
    "weights from the Hub or from a cache differ from those that the Hub lists": Event(
        "1",
        ALL,
        "tests/remote/test_hub_answers.py::test_the_content_is_compared_with_its_hash",
    ),
    "a branch and a tag on the Hub have the same name and different commits": Event(
        "1",
        "detected before any work",
        "tests/remote/test_hub_answers.py::test_revisions_that_cannot_be_told_apart_or_placed",
    ),
    "the disk is full while weights are fetched": Event(
        "1", ALL, "tests/remote/test_hub_answers.py::test_a_disk_that_takes_no_more"
    ),
    "a `Monitor` is called in a process that was forked from its own": Event(
        "a warning",
        "every step that was measured",
        "tests/live/test_monitor.py::test_a_forked_process_leaves_the_table_alone",
    ),
    "training runs under torch modes or saved-tensor hooks that change values": Event(
        "0",
        "the numbers as without them",
        "tests/live/test_monitor.py::test_modes_of_the_training_change_no_number",
    ),
}  # fmt: skip
