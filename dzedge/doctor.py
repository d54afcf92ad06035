"""Is this machine fit to run this robot? One line a check: ok, warn or fail, what was found, what to do."""

import importlib
import importlib.metadata
import os
import platform
import resource
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dzedge import config as robot_file
from dzedge import footprint
from dzedge.bundle import Bundle
from dzedge.check import Check, Status, document, script, table
from dzedge.config import RobotConfig
from dzedge.errors import DzedgeError
from dzedge.graph_cache import GraphCache
from dzedge.machine import cpu_isa
from dzedge.robot import machine, verified_bundle

if TYPE_CHECKING:
    from dzedge.hardware.host import Host

__all__ = ["Check", "document", "examine", "script", "table"]

CAP_IPC_LOCK, CAP_SYS_NICE = 14, 23
# Bit numbers of capabilities(7).
MEMORY_BYTES = 1 << 30
"""Free memory that a run should find: the four processes take less than half of it."""
LIMITS = (
    r"printf '@dialout - rtprio 95\n@dialout - memlock unlimited\n' | "
    "sudo tee /etc/security/limits.d/dzedge.conf  # then log out and in again"
)
INT8 = {
    "vnni": "int8 (signed weights, VNNI)",
    "avx2": "int8 (reduced range, AVX2)",
    "neon": "int8 (dot product, NEON)",
    "plain": "fp32 only",
}

def examine(path: Path | None, host: "Host | None" = None) -> list[Check]:
    """All checks for the robot file at `path` (None: the simulated robot), on `host` (None: this machine's devices)."""
    checks = [_python(), _processor(), _memory(), *_kernels(), *_onnxruntime()]
    config, check = _config(path)
    checks.append(check)
    if config is not None:
        bundle, check = _bundle(config)
        checks += [check, *_graphs(config, bundle), _graph_cache(config), _realtime(config)]
    checks += _devices(config, host)
    return checks + list(_simulator(config) if config is not None else ())


def _devices(config: RobotConfig | None, host: "Host | None") -> list[Check]:
    """Serial lines and cameras; they need the kernels, whose own check has said so where those are missing."""
    try:
        from dzedge import doctor_cameras, doctor_serial
        from dzedge.hardware.host import Host
    except Exception as error:  # as in _kernels, which has failed by then
        return [Check("devices", "warn", f"not looked at: {error}", "build the kernels: make install")]
    host = host or Host()
    return doctor_serial.examine(host, config) + doctor_cameras.examine(host, config)


def _python() -> Check:
    version, machine = platform.python_version(), platform.machine()
    found = f"{version} on {machine}, Linux {platform.release()}"
    if machine not in ("x86_64", "aarch64"):
        return Check("python", "warn", found, "tested on x86_64 and aarch64 only")
    return Check("python", "ok", found)


def _processor() -> Check:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    isa, cores = cpu_isa(text, platform.machine()), len(os.sched_getaffinity(0))
    found = f"{cores} cores, {isa}: {INT8[isa]}"
    governor = _read(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"))
    if cores < 2:
        return Check("processor", "warn", found, "inference and control want a core each")
    if governor == "powersave":
        advice = "cpupower frequency-set -g performance"
        why = "the clock follows the load, and each chunk waits for it"
        return Check("processor", "warn", f"{found}, governor powersave", advice, why, (f"sudo {advice}",))
    return Check("processor", "ok", found)


def _memory() -> Check:
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
    free = int(fields["MemAvailable"].split()[0]) * 1024
    found = f"{free / 1e9:.1f} GB free"
    if free < MEMORY_BYTES:
        return Check("memory", "warn", found, f"close something: {MEMORY_BYTES / 1e9:.1f} GB should be free")
    return Check("memory", "ok", found)


def _kernels() -> Iterator[Check]:
    folder = Path(str(files("dzedge.kernels")))
    typed = {path.stem for path in folder.glob("*.pxd")} & {path.stem for path in folder.glob("*.py")}
    names = sorted(typed | {path.stem for path in folder.glob("*.pyx")})
    broken, interpreted = [], []
    for name in names:
        try:
            module = importlib.import_module(f"dzedge.kernels.{name}")
        except Exception as error:  # kernels of two builds beside each other fail in many ways
            broken.append(f"{name} ({error})")
            continue
        if not str(module.__file__).endswith(".so"):
            interpreted.append(name)
    if broken:
        yield Check("kernels", "fail", f"cannot load {', '.join(broken)}", "build them: make install")
    elif interpreted:
        yield Check("kernels", "fail", f"not compiled: {', '.join(interpreted)}", "build them: make install")
    else:
        yield Check("kernels", "ok", f"{len(names)} compiled")


def _onnxruntime() -> Iterator[Check]:
    name = "onnxruntime"
    names = ("onnxruntime", "onnxruntime-gpu")
    installed = [n for n in names if _version(n) is not None]
    if len(installed) > 1:
        advice = "they overwrite each other: pip uninstall both, then install one"
        yield Check(name, "fail", " and ".join(installed), advice)
        return
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        yield Check(name, "fail", f"cannot load it ({error})", "pip install 'dzedge[cpu]', or the board's own build")
        return
    providers = module.get_available_providers()
    found = f"{module.__version__}: {', '.join(p.removesuffix('ExecutionProvider') for p in providers)}"
    if "CPUExecutionProvider" not in providers:
        yield Check(name, "fail", found, "reinstall it: every build has the CPU provider")
    else:
        yield Check(name, "ok", found)


def _config(path: Path | None) -> tuple[RobotConfig | None, Check]:
    file = path if path is not None else robot_file.default_path()
    try:
        config = robot_file.load(file)
    except DzedgeError as error:
        return None, Check("robot file", "fail", str(error), "correct it, then run doctor again")
    arm = config.arm
    return config, Check("robot file", "ok", f"{config.robot.name}: {len(arm.joints)} joints at {arm.rate_hz} Hz")


def _bundle(config: RobotConfig) -> tuple[Bundle | None, Check]:
    try:
        bundle = verified_bundle(config)
    except DzedgeError as error:
        advice = "export or fetch it again, or name another in policy.bundle"
        return None, Check("bundle", "fail", str(error), advice)
    section = bundle.manifest.dzedge
    return bundle, Check("bundle", "ok", f"{section.model_id} version {section.version}, signed by {bundle.key.name}")


def _graphs(config: RobotConfig, bundle: Bundle | None) -> Iterator[Check]:
    """Every graph as it would run: loaded, run once, and asked where."""
    if bundle is None:
        return
    try:
        found = footprint.measure(bundle, config.policy.precision, machine(config))
    except DzedgeError as error:
        yield Check("graphs", "fail", str(error), "correct provider and precision in the robot file's [policy]")
        return
    for one in found:
        places = ", ".join(f"{n} on {name.removesuffix('ExecutionProvider')}" for name, n in one.operators.items())
        words = f"{one.precision} by {one.provider}: {one.file}, operators: {places}"
        if one.elsewhere:
            advice = f"not on {one.provider}: {', '.join(one.elsewhere[:8])}; export the graph for it"
            yield Check(f"graph {one.graph}", "warn", words, advice)
        else:
            yield Check(f"graph {one.graph}", "ok", words)


def _graph_cache(config: RobotConfig) -> Check:
    if not config.policy.cache:
        return Check("graph cache", "ok", "off")
    try:
        return Check("graph cache", "ok", str(GraphCache.of_this_machine().root))
    except DzedgeError as error:
        return Check("graph cache", "warn", str(error), "every start optimizes the graphs again")


def _realtime(config: RobotConfig) -> Check:
    priority = config.realtime.priority
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    locked = _capable(CAP_IPC_LOCK) or limit == resource.RLIM_INFINITY
    missing = [] if locked else ["memory lock"]
    if priority and not _may_schedule(priority):
        missing.insert(0, f"SCHED_FIFO {priority}")
    if not missing:
        return Check("real time", "ok", f"SCHED_FIFO {priority} and memory lock granted")
    status: Status = "fail" if config.realtime.require else "warn"
    advice = "in /etc/security/limits.d/dzedge.conf: `@dialout - rtprio 95`, `@dialout - memlock unlimited`"
    why = "whatever else runs may then delay the control loop"
    found = f"not granted: {', '.join(missing)}"
    return Check("real time", status, found, f"{advice}; then log in again", why, (LIMITS,))


def _may_schedule(priority: int) -> bool:
    """Try it: a container may refuse what its capabilities promise."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    os.sched_setscheduler(0, policy, parameters)
    return True


def _simulator(config: RobotConfig) -> Iterator[Check]:
    if not config.arm.simulated:
        return
    try:
        mujoco: Any = importlib.import_module("mujoco")
    except ImportError as error:
        yield Check("simulator", "fail", f"cannot load MuJoCo ({error})", "pip install 'dzedge[sim]'")
        return
    yield Check("simulator", "ok", f"MuJoCo {mujoco.__version__}")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def _capable(bit: int) -> bool:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> bit & 1)
    return False
