"""The command line. Nothing heavy is imported before a command needs it: `dzedge --help` answers at once."""

import contextlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dzedge.errors import DzedgeError, PolicyError, UsageError

if TYPE_CHECKING:
    from dzedge.bundle import Bundle
    from dzedge.config import RobotConfig

app = typer.Typer(
    help="Edge runtime for World Action Models: cameras in, imagination and actions, servo bus out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
bundles = typer.Typer(help="Policy bundles: who signed them and what is in them.", no_args_is_help=True)
app.add_typer(bundles, name="bundle")

Robot = Annotated[Path | None, typer.Argument(metavar="[ROBOT.toml]", help="Robot file; none: the simulated robot.")]
Task = Annotated[str | None, typer.Option(help="What to do, in words; none: the robot's or scene's own.")]
Policy = Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Another bundle than the robot file's.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the simulated scene and all noise.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def run(
    robot: Robot = None,
    task: Task = None,
    policy: Policy = None,
    duration: Annotated[float | None, typer.Option(min=0.1, max=1e8, help="Repeat tasks for this long [s].")] = None,
    headless: Annotated[bool, typer.Option("--headless", help="No live status line.")] = False,
    seed: Seed = None,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="One process, fake clock, repeatable.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="For summary; none: runs/<time>.")] = None,
    as_json: Json = False,
) -> None:
    """Run a robot until its task succeeds or times out; write a summary and a picture of it."""
    config, bundle = _open(robot, policy, seed)
    from dzedge import console

    _check_words(task if task is not None else config.task.instruction, bundle)
    runner = _runner(config, lockstep)
    folder = console.make_folder(out)
    with console.live(config.arm.names, not headless) as on_status:
        result = runner(config, bundle, task=task, seed=config.sim.seed, duration_s=duration, on_status=on_status)
    from dzedge import report  # not before: the arm need not wait for what draws pictures

    files = report.write(result, config, bundle, folder)
    if as_json:
        console.emit(report.document(result, files))
    else:
        console.tell(console.run_report(result, files))
    raise typer.Exit(1 if result.success is False else 0)


@app.command()
def sim(robot: Robot = None, seed: Seed = None, as_json: Json = False) -> None:
    """Serve the simulated robot to any other program, until Ctrl-C."""
    from dzedge import console, simulator
    from dzedge import robot as robots

    config = robots.read(robot, seed=seed)
    robots.need_simulation(config, "dzedge sim")

    def ready(served: dict[str, object]) -> None:
        if as_json:
            console.emit(served)
        else:
            console.tell(*(f"{key}: {value}" for key, value in served.items()), "Ctrl-C ends it")
        sys.stdout.flush()

    try:
        simulator.serve(config, config.sim.seed, ready)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def imagine(
    seed: Seed = None,
    policy: Policy = None,
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture to write.")] = Path("imagine.png"),
    as_json: Json = False,
) -> None:
    """Draw what the model imagines in a seeded scene, beside what then happens (in lockstep)."""
    from dzedge import console, picture, report
    from dzedge.lockstep import run_lockstep

    config, bundle = _open(None, policy, seed)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: must end in .png")
    console.make_folder(out.absolute().parent)
    imaginer = report.imaginer(config, bundle)
    if imaginer is None:
        raise UsageError(f"{bundle.name}: has no frame_decoder graph, so nothing can be drawn; use another bundle")
    with console.live(config.arm.names, True) as on_status:
        result = run_lockstep(config, bundle, task=None, seed=config.sim.seed, duration_s=None, on_status=on_status)
    apart = picture.imagination(result.history, imaginer, result.task, config.sim.seed, out)
    if apart is None:
        raise DzedgeError("the run made no chunk whose imagined frames all came to pass; nothing to draw")
    if as_json:
        console.emit({"task": result.task, "seed": config.sim.seed, "difference": apart, "files": [str(out)]})
    else:
        console.tell(f"{result.task}: mean difference {100 * apart:.1f} %", f"wrote {out}")


@app.command()
def profile(
    robot: Robot = None,
    policy: Policy = None,
    seed: Seed = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to run [s].")] = 10.0,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="Compute times only, no real time.")] = False,
    as_json: Json = False,
) -> None:
    """Run for some seconds and show how long each stage takes."""
    config, bundle = _open(robot, policy, seed)
    from dzedge import console, report

    runner = _runner(config, lockstep)
    with console.live(config.arm.names, True) as on_status:
        result = runner(config, bundle, task=None, seed=config.sim.seed, duration_s=seconds, on_status=on_status)
    if as_json:
        document = report.document(result, [])
        console.emit({key: document[key] for key in ("duration_s", "chunks", "refused", "stages")})
    else:
        console.tell(console.stage_table(result.stages))


@app.command()
def doctor(robot: Robot = None, as_json: Json = False) -> None:
    """Check machine, devices, bundle and robot file; say what to do about what is wrong."""
    from dzedge import console
    from dzedge import doctor as checks

    found = checks.examine(robot)
    document = checks.document(found)
    if as_json:
        console.emit(document)
    else:
        console.tell(checks.table(found))
    raise typer.Exit(0 if document["ok"] else 1)


@app.command()
def evaluate(
    policies: Annotated[list[Path] | None, typer.Argument(metavar="[BUNDLE...]")] = None,
    suite: Annotated[str, typer.Option(help="Which tasks: reach, or verbs.")] = "reach",
    episodes: Annotated[int, typer.Option(min=1, max=1000, help="Scenes of each seed.")] = 50,
    seeds: Annotated[list[int] | None, typer.Option(min=0, max=999, help="May be repeated.")] = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes to share the work.")] = 2,
    sampler: Annotated[str, typer.Option(help="auto, video_first(nv,na), joint(n) or flash(1).")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32 or int8.")] = "auto",
    as_json: Json = False,
) -> None:
    """Play a suite of tasks in lockstep and count successes. No bundle: all that came along."""
    from dzedge import console
    from dzedge import evaluate as evaluation
    from dzedge.lockstep import run_lockstep
    from dzedge.robot import packaged_bundles

    results = []
    scenes = evaluation.scenes(suite, episodes, seeds or [0])
    for bundle in policies or packaged_bundles():
        config, opened = _open(None, bundle, None, sampler, precision)
        played = []
        with console.progress(opened.manifest.dzedge.model_id, len(scenes)) as advance:
            for episode in evaluation.episodes(run_lockstep, config, scenes, workers):
                played.append(episode)
                advance()
        results.append(evaluation.document(opened.manifest.dzedge.model_id, suite, played))
    if as_json:
        console.emit({"results": results})
    else:
        console.tell(*(evaluation.table(result) for result in results))


@bundles.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    key: Annotated[list[Path] | None, typer.Option(help="Public key file to trust; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Check signature and every file of a bundle; exit code 5 where anything is not as signed."""
    from dzedge import console
    from dzedge.robot import inspected_bundle

    opened = inspected_bundle(path, key or [])
    document = console.bundle_facts(opened)
    if as_json:
        console.emit(document)
    else:
        console.tell(f"{opened.name}: as signed", *(f"{name}: {value}" for name, value in document.items()))


@bundles.command()
def show(
    path: Annotated[Path, typer.Argument(metavar="BUNDLE")],
    key: Annotated[list[Path] | None, typer.Option(help="Public key file to trust; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """Show what is in a bundle, once it is verified."""
    from dzedge import console
    from dzedge.robot import inspected_bundle

    opened = inspected_bundle(path, key or [])
    if as_json:
        console.emit(console.bundle_facts(opened) | {"manifest": console.bundle_manifest(opened)})
    else:
        console.tell(*(f"{name}: {value}" for name, value in console.bundle_facts(opened).items()))
        console.tell(console.graph_table(opened))


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def export(context: typer.Context) -> None:
    """Export a checkpoint to a signed bundle (needs the [export] extra)."""
    _training("export", "release", context.args)


@app.command(context_settings=PASS_ON)
def train(context: typer.Context) -> None:
    """Train a world action model (needs the [export] extra)."""
    _training("train", "train", context.args)


def _training(command: str, module: str, arguments: list[str]) -> None:
    """Hand over to dzedge.export, which alone may load torch."""
    for needed in ("torch", "onnx"):
        if importlib.util.find_spec(needed) is None:
            raise UsageError(f"dzedge {command}: {needed} is missing; pip install 'dzedge[export]', or use .venv-dev")
    entry: Any = importlib.import_module(f"dzedge.export.{module}")
    entry.main(arguments)


def _runner(config: "RobotConfig", lockstep: bool) -> Any:
    """What plays the robot: real processes, or all in one on a fake clock."""
    if not lockstep:
        from dzedge.supervisor import run_robot

        return run_robot
    from dzedge.lockstep import run_lockstep
    from dzedge.robot import need_simulation

    need_simulation(config, "--lockstep")
    return run_lockstep


def _check_words(asked: str | None, bundle: "Bundle") -> None:
    """Refuse words that the policy cannot embed before anything is started or moved. Raises UsageError."""
    if asked is None:
        return
    from dzedge.policies.base import Tokenizer

    if not asked.strip():
        raise UsageError("the task is empty: say what to do, or leave --task out")
    try:
        Tokenizer(bundle.manifest.dzedge.language).ids(asked)
    except PolicyError as error:
        raise UsageError(str(error)) from error


def _open(
    robot: Path | None, policy: Path | None, seed: int | None, sampler: str = "auto", precision: str = "auto"
) -> "tuple[RobotConfig, Bundle]":
    """The robot file with the command line's changes, and its verified bundle."""
    from dzedge import robot as robots

    config = robots.read(robot, policy, seed, sampler, precision)
    return config, robots.verified_bundle(config)


def main() -> None:
    """Entry point: one clear sentence and an exit code for whatever goes wrong."""
    while (spare := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # started without stdin, stdout or stderr: no memory file may get their numbers
    os.close(spare)
    try:
        app()
    except DzedgeError as error:
        _fail(error, str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("DZEDGE_TRACEBACK") == "1":
            raise
        if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("dzedge.kernels."):
            _fail(error, f"{error.name} is not built; build the kernels: make install", 1)
        _fail(
            error,
            f"unexpected {type(error).__name__}: {error}; this is a fault of dzedge: run it again with "
            "DZEDGE_TRACEBACK=1 and report both with `dzedge doctor --json`",
            1,
        )


def _fail(error: Exception, message: str, code: int) -> NoReturn:
    sys.stderr.write(f"dzedge: {message}\n")
    if "--json" in sys.argv:
        import json

        document = json.dumps({"error": type(error).__name__, "message": message, "exit_code": code})
        with contextlib.suppress(OSError, AttributeError):  # a stdout that is closed or full
            sys.stdout.write(document + "\n")
            sys.stdout.flush()
    sys.exit(code)


if __name__ == "__main__":
    main()
