"""Runs test_vivid.py in a virtual machine, for machines whose kernel has no vivid: about two minutes, no root, no KVM.

    apt-get install qemu-system-x86 busybox-static cpio
    apt-get download linux-image-6.1.0-50-amd64 && dpkg-deb -x linux-image-*.deb kernel
    python tests/judges/vivid_vm.py kernel

The guest boots that kernel, loads vivid, mounts this machine's files read-only over 9p and runs this Python in them.
Ends as pytest ends.
"""

import argparse
import gzip
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODULES = ("virtio_pci", "9pnet_virtio", "9p", "videobuf2_vmalloc", "videobuf2_dma_contig", "vivid")
OPTIONS = {"vivid": "n_devs=1 node_types=0x1 num_inputs=1 input_types=0"}
SETTLED = "--noconftest -c /dev/null -p no:cacheprovider --import-mode=importlib --color=no -rs"
MOUNTS = """/busybox mkdir -p /proc /sys
/busybox mount -t proc proc /proc
/busybox mount -t sysfs sysfs /sys
/busybox mount -t devtmpfs dev /dev
"""
HOST = """/busybox mount -t 9p -o trans=virtio,ro,version=9p2000.L,msize=512000,cache=loose host /h
/busybox mount -t proc proc /h/proc
/busybox mount -t sysfs sysfs /h/sys
/busybox mount -t devtmpfs dev /h/dev
/busybox mount -t tmpfs tmpfs /h/mnt
"""


def needed(modules: dict[str, Path]) -> list[str]:
    """MODULES after what they depend on; what is not there is part of the kernel."""
    order: list[str] = []

    def add(name: str) -> None:
        if name in order or name not in modules:
            return
        found = re.search(rb"\0depends=([^\0]*)\0", modules[name].read_bytes())
        for other in found.group(1).decode().split(",") if found else ():
            add(other.replace("-", "_"))
        order.append(name)

    for name in MODULES:
        add(name)
    return order


def initrd(kernel: Path, root: Path, out: Path) -> None:
    """What the guest boots: busybox, the modules, a script."""
    modules = {path.stem.replace("-", "_"): path for path in kernel.glob("lib/modules/*/**/*.ko")}
    for folder in ("lib", "dev", "proc", "sys", "h"):
        (root / folder).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "busybox", root / "busybox")
    script = "#!/busybox sh\n" + MOUNTS
    for name in needed(modules):
        shutil.copy(modules[name], root / "lib" / f"{name}.ko")
        script += f"/busybox insmod /lib/{name}.ko {OPTIONS.get(name, '')}\n"
    environment = "PATH=/usr/bin:/bin HOME=/mnt TMPDIR=/mnt OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE=1"
    test = f"{sys.executable} -m pytest {SETTLED} {HERE / 'test_vivid.py'}"
    script += f"{HOST}/busybox chroot /h /usr/bin/env -i {environment} {test}\n"
    script += "echo ended with $?\n/busybox poweroff -f\n"
    (root / "init").write_text(script)
    (root / "init").chmod(0o755)
    files = subprocess.run(["find", "."], cwd=root, capture_output=True, check=True).stdout
    packed = subprocess.run(["cpio", "-o", "-H", "newc"], cwd=root, input=files, capture_output=True, check=True).stdout
    out.write_bytes(gzip.compress(packed, 1))


def boot(kernel: Path, image: Path) -> int:
    """Run the guest, its console on stdout; what pytest ended with, 1 where it never did."""
    (linux,) = kernel.glob("boot/vmlinuz-*")
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot", "-net", "none",
        "-kernel", str(linux), "-initrd", str(image), "-append", "console=ttyS0 quiet panic=-1 no_timer_check",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
    ]  # fmt: skip
    told = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=600).stdout
    sys.stdout.write(told)
    ended = re.search(r"ended with (\d+)", told)
    return int(ended.group(1)) if ended else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernel", type=Path, help="an unpacked linux-image package, not a cloud one")
    kernel = parser.parse_args().kernel
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "initrd.gz"
        initrd(kernel, Path(folder) / "root", image)
        return boot(kernel, image)


if __name__ == "__main__":
    sys.exit(main())
