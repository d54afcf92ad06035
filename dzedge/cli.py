"""The command line. Nothing heavy is imported before a command needs it: `dzedge --help` answers at once."""

import contextlib
import importlib
import importlib.util
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from dzedge import arm_commands, bundle_commands, camera_commands, sim_commands
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
app.add_typer(bundle_commands.app, name="bundle", short_help="Policy bundles: who signed them, what is in them.")
app.add_typer(camera_commands.app, name="camera")
app.add_typer(arm_commands.app, name="arm")

Robot = Annotated[Path | None, typer.Argument(metavar="[ROBOT.toml]", help="Robot file; none: the simulated robot.")]
Task = Annotated[str | None, typer.Option(help="What to do, in words; none: the robot's or scene's own.")]
Policy = Annotated[Path | None, typer.Option(metavar="BUNDLE", help="Another bundle than the robot file's.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**32 - 1, help="Of the simulated scene and all noise.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
PACKAGES = {"onnxruntime": "onnxruntime", "onnxruntime-gpu": "onnxruntime-gpu", "pyrealsense2": "librealsense"}
"""What `--version` tells beside dzedge itself, where it is installed: package, and what it is called there."""


def _tell_versions(wanted: bool) -> None:
    """`dzedge --version`: from the packages' metadata, which loads none of them."""
    if not wanted:
        return
    from importlib import metadata

    lines = [f"dzedge {metadata.version('dzedge')}"]
    for package, name in PACKAGES.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            lines.append(f"{name} {metadata.version(package)}")
    sys.stdout.write("\n".join(lines) + "\n")
    raise typer.Exit(0)


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Tell versions and exit.", is_eager=True, callback=_tell_versions)
    ] = False,
) -> None:
    """Options of dzedge itself."""


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
    """Run a robot until its task succeeds or times out. Writes a summary and a picture of it."""
    config, bundle = _open(robot, policy, seed)
    from dzedge import console
    from dzedge.suite import check_task

    asked = task if task is not None else config.task.instruction
    _check_words(asked, bundle)
    if asked is not None and duration is None and config.arm.simulated:
        check_task(asked, config.sim.seed, config.sim.cubes)
    runner = _runner(config, lockstep)
    folder = console.make_folder(out)
    with console.live(config.arm.names, not headless) as on_status:
        result = runner(config, bundle, task=task, seed=config.sim.seed, duration_s=duration, on_status=on_status)
    from dzedge import footprint, report  # not before: the arm need not wait for what draws pictures
    from dzedge import robot as robots

    files = report.write(result, config, bundle, folder)
    if as_json:
        graphs = footprint.chosen(bundle, config.policy.precision, robots.machine(config))
        console.emit(report.document(result, files) | {"graphs": graphs})
    else:
        console.tell(console.run_report(result, files))
    raise typer.Exit(1 if result.success is False else 0)


app.command(name="sim", help=sim_commands.HELP)(sim_commands.sim)


@app.command()
def imagine(
    task: Annotated[str | None, typer.Option(help="What to dream of; none: a labelled and an unseen motion.")] = None,
    seed: Seed = None,
    policy: Policy = None,
    out: Annotated[Path, typer.Option(metavar="PNG", help="Picture to write.")] = Path("imagine.png"),
    as_json: Json = False,
) -> None:
    """Draw what the model imagines, above it what then happens. In a seeded scene, in lockstep."""
    from dzedge import console, filmstrip, report
    from dzedge.lockstep import run_lockstep

    config, bundle = _open(None, policy, seed)
    _check_words(task, bundle)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: must end in .png")
    console.make_folder(out.absolute().parent)
    imaginer = report.imaginer(config, bundle)
    if imaginer is None:
        raise UsageError(f"{bundle.name}: imagines nothing that could be drawn; use another bundle")
    scene, cubes, strips = config.sim.seed, config.sim.cubes, []
    if task is not None and scene != (fit := filmstrip.find_scene(task, scene, cubes)):
        if seed is not None:
            raise UsageError(f"--seed {seed}: {task!r} cannot be done in that scene; take {fit}, or leave --seed out")
        scene = fit
    for words in [task] if task else filmstrip.choose(bundle, scene, cubes):
        with console.live(config.arm.names, True) as show:
            result = run_lockstep(config, bundle, task=words, seed=scene, duration_s=None, on_status=show)
        strip = filmstrip.cut(result, imaginer)
        if strip is None:
            raise DzedgeError(f"{words}: the run made no chunk whose imagined frames all came to pass; nothing to draw")
        strips.append(strip)
    filmstrip.draw(strips, out)
    if as_json:
        console.emit(filmstrip.document(strips, out))
    else:
        console.tell(filmstrip.table(strips), f"wrote {out}")


@app.command()
def profile(
    robot: Robot = None,
    policy: Policy = None,
    seed: Seed = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long to run [s].")] = 10.0,
    lockstep: Annotated[bool, typer.Option("--lockstep", help="Compute times only, no real time.")] = False,
    as_json: Json = False,
) -> None:
    """Run for some seconds; show how long each stage takes. Also what runs each graph, and the memory it takes."""
    config, bundle = _open(robot, policy, seed)
    from dzedge import console, footprint, report
    from dzedge import robot as robots

    runner = _runner(config, lockstep)
    with console.live(config.arm.names, True) as on_status:
        result = runner(config, bundle, task=None, seed=config.sim.seed, duration_s=seconds, on_status=on_status)
    graphs = footprint.measure_apart(bundle, config.policy.precision, robots.machine(config))
    if as_json:
        document = report.document(result, [])
        told = {key: document[key] for key in ("duration_s", "chunks", "refused", "stages")}
        console.emit(told | {"graphs": [asdict(graph) for graph in graphs]})
    else:
        console.tell(console.stage_table(result.stages), "", footprint.table(graphs))


@app.command()
def doctor(
    robot: Robot = None,
    fix: Annotated[bool, typer.Option("--fix", help="Print the commands that would mend it; run none.")] = False,
    as_json: Json = False,
) -> None:
    """Check machine, devices, bundle and robot file. Says what to do about what is wrong."""
    if robot is not None and not robot.expanduser().is_file():
        from dzedge import config

        config.load(robot)  # raises, as for `dzedge run`: there is nothing to examine
    from dzedge import console
    from dzedge import doctor as checks

    found = checks.examine(robot)
    document = checks.document(found)
    if as_json:
        console.emit(document)
    elif fix:
        sys.stdout.write(document["fix"])
    else:
        console.tell(checks.table(found))
    raise typer.Exit(0 if document["ok"] else 1)


@app.command()
def evaluate(
    context: typer.Context,
    policies: Annotated[list[Path] | None, typer.Argument(metavar="[BUNDLE...]")] = None,
    suite: Annotated[str, typer.Option(help="reach, verbs or zeroshot: tasks; imagination: its dreams.")] = "reach",
    episodes: Annotated[
        int, typer.Option(min=1, max=1000, help="Of each seed; verbs: of each verb; zeroshot: of each split.")
    ] = 50,
    seeds: Annotated[
        list[int] | None,
        typer.Option(help="0 to 499, may be repeated; seed s has scenes 1000 s and on; 400 up: release."),
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, max=256, help="Processes; none: one a core.")] = None,
    sampler: Annotated[str, typer.Option(help="auto: the bundle's own; or e.g. video_first(1,1), joint(4).")] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16, int8, w8, w4, fp8 or nvfp4.")] = "auto",
    execute: Annotated[int | None, typer.Option(help="Actions run before the next chunk; none: the robot's.")] = None,
    no_prefix: Annotated[bool, typer.Option("--no-prefix", help="Hide committed actions from the model.")] = False,
    delay: Annotated[float, typer.Option(min=0, max=2000, help="More latency than there is [ms].")] = 0.0,
    synchronous: Annotated[bool, typer.Option("--synchronous", help="The world waits for inference.")] = False,
    no_smoothing: Annotated[
        bool, typer.Option("--no-smoothing", help="No filter, no seam: the limiter alone.")
    ] = False,
    latency: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Table of an earlier document; default; none: measure.")
    ] = None,
    realtime: Annotated[bool, typer.Option("--realtime", help="In the robot's own processes, in real time.")] = False,
    pair: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="A.json B.json", help="Compare two documents, scene by scene.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Play a suite of tasks in lockstep, count successes. At this machine's latency; no bundle: all that came along."""
    from dzedge import comparison, console
    from dzedge import evaluate as evaluation
    from dzedge.lockstep import measure, run_lockstep
    from dzedge.robot import packaged_bundles
    from dzedge.suite import scenes
    from dzedge.supervisor import run_robot

    _refuse_idle(context, evaluation.idle_options(suite, pair is not None, realtime, synchronous))
    if pair is not None:
        pairings = comparison.compare(*pair)
        if as_json:
            console.emit({"pairings": pairings})
        else:
            console.tell(*(comparison.table(pairing) for pairing in pairings))
        return
    if suite == "imagination":
        return _foresee(policies, episodes, seeds or [0], sampler, precision, as_json)
    settings = evaluation.Settings(
        suite, episodes, tuple(seeds or [0]), execute, delay, synchronous, not no_prefix, not no_smoothing, realtime
    )
    settings.check()
    chosen, share = scenes(suite, episodes, settings.seeds), workers or len(os.sched_getaffinity(0))
    robots = evaluation.Robots(run_lockstep, run_robot, measure)
    results = []
    for path in policies or packaged_bundles():
        config, bundle = _open(None, path, None, sampler, precision)
        for words in sorted({scene.task for scene in chosen if scene.task}):
            _check_words(words, bundle)
        results.append(evaluation.run(robots, config, bundle, settings, chosen, share, latency, console.progress))
    if as_json:
        console.emit({"results": results})
    else:
        console.tell(*(evaluation.table(result) for result in results))


PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


@app.command(context_settings=PASS_ON)
def export(context: typer.Context) -> None:
    """Make a signed bundle of a checkpoint (needs the [export] extra)."""
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


def _refuse_idle(context: typer.Context, idle: dict[str, str]) -> None:
    """Refuse options that would have no effect. idle: by parameter, why. Raises UsageError."""
    for name, why in idle.items():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            shown = "BUNDLE" if name == "policies" else f"--{name.replace('_', '-')}"
            raise UsageError(f"{shown}: {why}; leave it out")


def _foresee(
    policies: list[Path] | None, episodes: int, seeds: list[int], sampler: str, precision: str, as_json: bool
) -> None:
    """`dzedge evaluate --suite imagination`; of the bundles that came along only those that imagine."""
    from dzedge import console, dream, foresight
    from dzedge.robot import packaged_bundles

    results = []
    for path in policies or packaged_bundles():
        config, bundle = _open(None, path, None, sampler, precision)
        if policies or dream.imagines(bundle):
            with console.progress(bundle.manifest.dzedge.model_id, 3 * episodes * len(seeds)) as advance:
                results.append(foresight.measure(config, bundle, episodes, seeds, advance))
    if as_json:
        console.emit({"results": results})
    else:
        console.tell(*(foresight.table(result) for result in results))


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
    from dzedge.policies.text import check_instruction

    if not asked.strip():
        raise UsageError("the task is empty: say what to do, or leave --task out")
    try:
        check_instruction(bundle, asked)
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
