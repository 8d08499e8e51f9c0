"""What the trainer is told on its command line, and what it makes of it."""

import re

import pytest

from .trainer import run

PAIR = ["--coordinator", "localhost:1", "--processes", "2"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], r"argument --steps: expected a whole number from 1, got '0'"),
        (["--steps", "many"], r"argument --steps: expected a whole number from 1, got 'many'"),
        (["--steps", "2147483648"], r"argument --steps: expected a whole number from 1 and below 2147483648"),
        (["--steps", "9" * 400], r"argument --steps: expected a whole number from 1 and below 2147483648"),
        (["--steps", "9" * 5000], r"argument --steps: expected a whole number from 1, got "),
        (["--batch-size", "9" * 31], r"argument --batch-size: expected a whole number from 1 and below"),
        (["--eigenbasis", "9" * 31], r"argument --eigenbasis: expected a whole number from 1 and below"),
        (["--evaluate-every", "9" * 31], r"argument --evaluate-every: expected a whole number from 1 and"),
        (["--checkpoint-every", "9" * 31], r"argument --checkpoint-every: expected a whole number from 1"),
        (["--processes", "9" * 31], r"argument --processes: expected a whole number from 2 and below"),
        (["--seed", "4294967296"], r"argument --seed: expected a whole number from 0 and below 4294967296"),
        (["--seed", "9" * 20], r"argument --seed: expected a whole number from 0 and below 4294967296"),
        (
            ["--batch-size", "1201"],
            r"--batch-size 1201 is more than the 1200 training examples: give a smaller",
        ),
        (["--learning-rate", "-1"], r"argument --learning-rate: expected a number above 0, got '-1'"),
        (["--learning-rate", "nan"], r"argument --learning-rate: expected a number above 0, got 'nan'"),
        (["--learning-rate", "1e400"], r"argument --learning-rate: expected a number above 0, got '1e400'"),
        (["--alpha", "-0.5"], r"argument --alpha: expected a number from 0, got '-0.5'"),
        (["--momentum", "1"], r"argument --momentum: expected a number from 0 and below 1, got '1'"),
        (
            ["--phi", "plasticity"],
            r"--phi plasticity is not known: use one of acc.*, activity, .*, or --phi help",
        ),
        (["--role", "both"], r"argument --role: invalid choice: 'both'"),
        (["--data", "imagenet"], r"argument --data: invalid choice: 'imagenet'"),
        (
            ["--model", "transformer"],
            r"--model transformer cannot read --data digits \(images\): use --data text",
        ),
        (["--data", "text", "--model", "mlp"], r"--model mlp cannot read --data text \(text\): use --model"),
        (
            ["--baseline", "sgdd", "--baseline-learning-rate", "1"],
            r"--baseline sgdd is not an Optax optimiser",
        ),
        (["--baseline", "lion"], r"--baseline lion needs --baseline-learning-rate as well"),
        (["--baseline", "nosuch"], r"--baseline nosuch is not an Optax optimiser with a learning rate"),
        (
            ["--optimizer", "riemannian_adamw", "--phi", "online_ewc"],
            r"--optimizer riemannian_adamw with --phi online_ewc has no recommended rate: give --learning",
        ),
        (
            ["--optimizer", "riemannian_sgd", "--conformal", "tree"],
            r"--optimizer riemannian_sgd with --conformal tree has no recommended rate",
        ),
        (
            ["--optimizer", "riemannian_schedule_free", "--momentum", "0"],
            r"--optimizer riemannian_schedule_free cannot be built: b1 ",
        ),
        (
            ["--optimizer", "riemannian_schedule_free", "--eigenbasis"],
            r"--eigenbasis turns the weights that riemannian_schedule_free averages: leave it out",
        ),
        (["--baseline-option", "momentum"], r"argument --baseline-option: expected NAME=VALUE"),
        (["--baseline-option", "b1=nan"], r"argument --baseline-option: expected NAME=VALUE with a finite"),
        (["--baseline-option", "b1=1e400"], r"argument --baseline-option: expected NAME=VALUE with a finite"),
        (
            ["--baseline", "none", "--baseline-learning-rate", "1"],
            r"--baseline-learning-rate is not used by --baseline none",
        ),
        (
            ["--baseline", "none", "--baseline-option", "b1=0.5"],
            r"--baseline-option is not used by --baseline",
        ),
        (["--baseline-option", "beta=1"], r"--baseline-option beta is not an argument of adamw"),
        (
            ["--baseline-option", "learning_rate=1"],
            r"--baseline-option learning_rate: give the rate as --baseline-learning-rate",
        ),
        (["--text-file", "missing"], r"--text-file is not used by --data digits: add --data text"),
        (["--data", "mnist", "--data-dir", "missing"], r"--data-dir missing has no train-\*\.parquet"),
        (["--no-such-option"], r"unrecognized arguments: --no-such-option"),
        (["--shard", "weights"], r"argument --shard: invalid choice: 'weights'"),
        (
            ["--coordinator", "localhost"],
            r"argument --coordinator: expected HOST:PORT or auto, got 'localhost'",
        ),
        (["--coordinator", "localhost:99999"], r"argument --coordinator: expected HOST:PORT or auto"),
        (
            ["--coordinator", "localhost:1"],
            r"--coordinator HOST:PORT needs --processes and --process as well",
        ),
        (["--process", "0"], r"--process needs --coordinator HOST:PORT as well"),
        (["--processes", "1"], r"argument --processes: expected a whole number from 2, got '1'"),
        ([*PAIR, "--process", "2"], r"--process 2 is not below --processes 2: count from 0"),
        ([*PAIR, "--process", "1", "--shard", "none"], r"--shard none uses one device of one process"),
        (["--coordinator", "auto", "--processes", "2"], r"--processes is not used by --coordinator auto"),
        (
            ["--coordinator", "auto"],
            r"--coordinator auto: could not connect \(.*\): give HOST:PORT, --processes",
        ),
        (["--shard", "data", "--batch-size", "12"], r"--batch-size 12 cannot be shared evenly by 8 devices"),
        (["--resume", "--overwrite"], r"argument --overwrite: not allowed with argument --resume"),
        (["--resume"], r"--resume: .* holds no readable run \(record\.json\): leave out --resume"),
    ],
)
def test_wrong_arguments_end_in_one_line_and_write_nothing(tmp_path, capsys, arguments, message):
    folder = tmp_path / "run"
    assert run(*arguments, out=folder) == 2
    captured = capsys.readouterr()
    assert re.match(f"error: {message}", captured.err)
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not folder.exists()


def test_a_text_that_cannot_be_used_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "short.txt").write_text("too short")
    for name, message in (("short.txt", "is too short: its 9 bytes"), ("missing.txt", "cannot be read")):
        arguments = ["--data", "text", "--model", "transformer", "--text-file", str(tmp_path / name)]
        assert run(*arguments, out=tmp_path / "run") == 2
        captured = capsys.readouterr().err
        assert message in captured
        assert captured.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_to_ends_in_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert run(out=tmp_path / "file" / "run") == 2
    message = capsys.readouterr().err
    assert re.fullmatch(
        r"error: --out .* cannot be written to \(Not a directory\): name another folder\n", message
    )
    assert run(out=tmp_path / "file") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "file").read_text() == "in the way"


def test_resume_without_a_folder_is_refused(capsys):
    assert run("--resume") == 2
    assert capsys.readouterr().err == "error: --resume and --overwrite need --out, the folder of the run\n"


def test_overwriting_empties_no_folder_that_is_not_a_runs(tmp_path, capsys):
    mine = tmp_path / "checkpoints" / "mine" / "weights.npz"
    mine.parent.mkdir(parents=True)
    mine.write_text("x")
    (tmp_path / "record.json").write_text("[1]")
    assert run("--overwrite", "--steps", "10", out=tmp_path) == 2
    assert "holds no readable run of this program" in capsys.readouterr().err
    assert mine.read_text() == "x"


@pytest.mark.parametrize(
    "record",
    [
        "{}",
        '{"arguments": 3}',
        '{"arguments": {}}',
        '{"arguments": {"steps": 40}, "data": 3}',
        '{"arguments": {"steps": 40}, "extended_at": null}',
        '{"arguments": {"steps": 40}, "status": "finished"}',
    ],
)
def test_a_record_of_no_run_is_not_resumed_and_its_folder_not_emptied(tmp_path, capsys, record):
    (tmp_path / "record.json").write_text(record)
    for option in ("--resume", "--overwrite"):
        assert run(option, out=tmp_path) == 2
        said = capsys.readouterr().err
        assert "holds no readable run" in said
        assert said.count("\n") == 1
    assert (tmp_path / "record.json").read_text() == record
