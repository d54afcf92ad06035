"""`dzedge camera ...`: what is attached, what it sees, recordings, latency. As in `dzedge.cli`, nothing heavy is
imported before a command needs it."""

from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dzedge.errors import UsageError

if TYPE_CHECKING:
    from dzedge.camera_config import Camera
    from dzedge.hardware.camera import CameraHealth, CameraInfo
    from dzedge.hardware.sources import Source
    from dzedge.viewfinder import Wish

app = typer.Typer(
    help="Cameras: RealSense, webcams, recordings and the simulated one. Webcams speak V4L2; recordings: .db3, .bag.",
    no_args_is_help=True,
)
Word = Annotated[
    str | None,
    typer.Argument(
        metavar="[CAMERA]",
        help="Serial number, /dev/..., recording, name in the robot file, or sim; none: the only one attached.",
    ),
]
Robot = Annotated[Path | None, typer.Option(metavar="ROBOT.toml", help="Robot file whose cameras are meant.")]
Width = Annotated[int | None, typer.Option(min=16, max=4096, help="[pixels]; none: near 640.")]
Height = Annotated[int | None, typer.Option(min=16, max=4096, help="[pixels]; none: near 480.")]
Fps = Annotated[int | None, typer.Option(min=1, max=300, help="[Hz]; none: near 30.")]
Format = Annotated[str | None, typer.Option(help="rgb8, bgr8, yuyv, mjpeg or grey.")]
Seed = Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the simulated scene.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command("list")
def list_cameras(as_json: Json = False) -> None:
    """Every camera on this machine, and what is wrong with it. With serial number, firmware, USB link and modes."""
    from dzedge import console, viewfinder
    from dzedge.hardware.sources import Sources

    sources = Sources()
    try:
        found, troubles = sources.attached(), sources.troubles()
    finally:
        sources.close()
    if as_json:
        console.emit({"cameras": [viewfinder.facts(source) for source in found], "troubles": troubles})
        return
    for source in found:
        console.tell(*_lines(source))
    console.tell(*(f"-> {words}" for words in troubles))
    if all(source.driver == "sim" for source in found):
        console.tell("no camera attached; look at the simulated one: dzedge camera show sim")


def _lines(source: "Source") -> list[str]:
    """A camera, its modes by size with formats and rates, what is wrong with it."""
    info, sizes = source.info, dict[tuple[int, int], dict[str, list[str]]]()
    for mode in source.modes:
        sizes.setdefault((mode.width, mode.height), {}).setdefault(mode.format, []).append(str(mode.fps))
    facts = (("serial", info.serial), ("firmware", info.firmware), ("USB", info.usb), ("port", info.port))
    lines = [
        f"{source.driver}: {info.name}",
        "  " + ", ".join(f"{name} {value}" for name, value in facts if value),
    ]
    for (width, height), formats in sizes.items():
        rates = ", ".join(f"{name} at {'/'.join(values)} fps" for name, values in formats.items())
        lines.append(f"  {width}x{height} {rates}")
    return [*lines, *([f"  -> {source.trouble}"] if source.trouble else [])]


@app.command()
def show(
    camera: Word = None,
    robot: Robot = None,
    out: Annotated[Path | None, typer.Option(metavar="PNG", help="Write the picture there.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    width: Width = None,
    height: Height = None,
    fps: Fps = None,
    format: Format = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What a camera sees, in the terminal or as a PNG. In the terminal: two pixels a character, 24-bit colour."""
    from dzedge import console
    from dzedge.hardware.sources import Sources
    from dzedge.viewfinder import find, opened

    if out is not None and out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: must end in .png")
    if watch and (as_json or out is not None):
        raise UsageError("--watch shows pictures in the terminal only; leave --out and --json out")
    sources = Sources()
    try:
        table = find(camera, robot, _wish(width, height, fps, format), sources)
        with opened(table, sources, seed=seed) as view:
            if watch:
                _watch(view)
                return
            frame = view.settled()
            health, info = view.camera.health(view.clock.now_ns()), view.camera.info
    finally:
        sources.close()
    document = _seen(table, info, health) | {"brightness": round(float(frame.image.mean()), 1)}
    if out is not None:
        _save(frame.image, out)
        document["files"] = [str(out)]
    if as_json:
        console.emit(document)
        return
    if out is None:
        console.tell(_picture(frame.image, spare=1))
    console.tell(_caption(document), *([f"wrote {out}"] if out is not None else []))


def _wish(width: int | None, height: int | None, fps: int | None, form: str | None) -> "Wish":
    from dzedge.camera_config import FORMATS
    from dzedge.viewfinder import Wish

    known = sorted({name for names in FORMATS.values() for name in names})
    if form is not None and form not in known:
        raise UsageError(f"--format {form}: must be one of {', '.join(known)}")
    return Wish(width, height, fps, form)


def _seen(table: "Camera", info: "CameraInfo", health: "CameraHealth") -> dict[str, Any]:
    """Who it is, how it films and how its frames do."""
    mode = {"width": table.width, "height": table.height, "fps": table.fps, "format": table.format}
    who = {"name": info.name, "serial": info.serial, "firmware": info.firmware, "usb": info.usb, "port": info.port}
    ages = {"state": health.state.name, "number": health.number, "age_ms": round(health.age_ns / 1e6, 1)}
    told = {"exposure_us": health.exposure_us, "gain": health.gain}
    known = {key: value for key, value in told.items() if value >= 0}
    return {"driver": table.driver, **who, "mode": mode, **ages, "dropped": health.dropped, **known}


def _caption(document: dict[str, Any]) -> str:
    mode = document["mode"]
    return (
        f"{document['name']} {document['serial']}, {mode['width']}x{mode['height']} at {mode['fps']} fps "
        f"{mode['format']}, frame {document['number']}, {document['age_ms']} ms old, {document['dropped']} dropped"
    )


def _picture(image: Any, spare: int) -> Any:
    """An image as the terminal can show it. spare: lines left for words. Raises UsageError where there are no
    colours."""
    from rich.console import Console

    from dzedge.half_blocks import half_blocks

    console = Console()
    if not console.is_terminal or console.no_color:
        raise UsageError("no terminal with colours to show a picture on; write it to a file: --out picture.png")
    return half_blocks(image, console.width, max(1, console.height - 1 - spare))


def _watch(view: Any) -> None:
    """Pictures in the terminal until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    first = _picture(view.settled().image, spare=0)
    try:
        with Live(first, console=Console(), auto_refresh=False, screen=True) as display:
            for frame in view.frames():
                display.update(_picture(frame.image, spare=0), refresh=True)
    except KeyboardInterrupt:
        return


def _save(image: Any, out: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(image).save(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror or error}; choose another --out") from error


@app.command()
def record(
    out: Annotated[Path, typer.Option(metavar="FILE.db3", help="File to write; must not be there.")],
    camera: Word = None,
    robot: Robot = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=86400, help="How long to film [s].")] = 5.0,
    raw: Annotated[bool, typer.Option("--raw", help="Do not compress: larger files, a quarter of the work.")] = False,
    width: Width = None,
    height: Height = None,
    fps: Fps = None,
    format: Format = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Record a RealSense or the simulated camera into a .db3 file. It is librealsense's, and can be played as a
    camera: driver = "playback" and path = FILE.db3 in the robot file, or `dzedge camera show FILE.db3`."""
    from dzedge import console
    from dzedge.clock import NS
    from dzedge.hardware.sources import Sources
    from dzedge.viewfinder import find, opened

    sources = Sources()
    try:
        table = find(camera, robot, _wish(width, height, fps, format), sources)
        with opened(table, sources, record=out, compressed=not raw, seed=seed) as view:
            view.settled()
            end_ns = view.clock.now_ns() + int(seconds * NS)
            with (
                suppress(KeyboardInterrupt),  # that is enough
                console.progress("recording (Ctrl-C ends it)", int(seconds * table.fps)) as advance,
            ):
                for _ in view.frames(end_ns):
                    advance()
            health, info = view.camera.health(view.clock.now_ns()), view.camera.info
    finally:
        sources.close()
    document = _seen(table, info, health)
    document |= {"frames": health.frames, "bytes": out.stat().st_size, "files": [str(out)]}
    if as_json:
        console.emit(document)
    else:
        megabytes = document["bytes"] / 1e6
        console.tell(_caption(document), f"wrote {out}: {health.frames} frames, {megabytes:.1f} MB")


@app.command()
def latency(
    camera: Word = None,
    robot: Robot = None,
    seconds: Annotated[float, typer.Option(min=1, max=60, help="How long the code is shown [s].")] = 8.0,
    delay: Annotated[float, typer.Option(min=0, max=1000, help="Of the simulated camera [ms].")] = 60.0,
    width: Width = None,
    height: Height = None,
    fps: Fps = None,
    format: Format = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Glass to host: how old a camera's pictures are when they arrive. This terminal shows a code of the time, the
    camera films it, the age of its pictures is read off.

    Make the terminal full screen and bright, point the camera at it so that it fills a third of the picture or more,
    keep both still for 15 s; run it on the machine that the camera is plugged into, not over ssh. The figure contains
    the terminal's and the screen's own delay (10 to 50 ms). `sim` rehearses it with a known --delay. More in
    docs/camera-latency.md."""
    from dzedge import console
    from dzedge.glass import Terminal, measure
    from dzedge.hardware.sim.filmed_screen import FilmedScreen
    from dzedge.hardware.sources import Sources
    from dzedge.viewfinder import find, opened

    sources, screens = Sources(), list[FilmedScreen]()
    try:
        table = find(camera, robot, _wish(width, height, fps, format), sources)

        def filmed(ring: Any) -> FilmedScreen:
            screens.append(FilmedScreen(ring, fps=table.fps, delay_ns=int(delay * 1e6), seed=seed))
            return screens[-1]

        with ExitStack() as stack:
            view = stack.enter_context(opened(table, sources, scene=filmed))
            view.settled()
            if table.simulated:
                advance = stack.enter_context(console.progress("measuring", 8 + int(seconds)))
                measured = measure(view, screens[0], seconds, advance)
            else:
                measured = measure(view, stack.enter_context(Terminal()), seconds)
            health, info = view.camera.health(view.clock.now_ns()), view.camera.info
    finally:
        sources.close()
    document = _seen(table, info, health) | measured.document()
    if table.simulated:
        document["true_ms"] = delay
    if as_json:
        console.emit(document)
    else:
        console.tell(_caption(document), *_latency_lines(document))


def _latency_lines(document: dict[str, Any]) -> list[str]:
    host, stamp = document["glass_to_host_ms"], document["glass_to_stamp_ms"]
    lines = [
        f"glass to host: p50 {host['p50']} ms, p10 {host['p10']}, p90 {host['p90']}, max {host['max']} "
        f"(read in {document['read']} of {document['frames']} frames)",
        f"of it before the capture stamp: p50 {stamp['p50']} ms; what exceeds the screen's own delay the stamps hide",
    ]
    if "true_ms" in document:
        lines.append(f"true delay of this rehearsal: {document['true_ms']} ms")
    return lines
