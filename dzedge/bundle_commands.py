"""`dzedge bundle ...`: keys, signatures and what is in a bundle. As in `dzedge.cli`, nothing heavy is imported before a
command needs it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dzedge.errors import UsageError

app = typer.Typer(
    help="Policy bundles (folder NAME.dzp, container NAME.dzb): who signed them, what is in them.", no_args_is_help=True
)
Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Folder NAME.dzp or container NAME.dzb.")]
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Of the files, by custom NAME.dzp.")]
Trusted = Annotated[list[Path] | None, typer.Option("--key", help="Public key file to trust; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.command()
def keygen(
    out: Annotated[Path, typer.Option(metavar="NAME", help="Writes NAME.key, which is secret, and NAME.pub.")],
    as_json: Json = False,
) -> None:
    """Make a key pair to sign bundles with (minisign's files, no password); never overwrites one."""
    from dzedge import packing

    public, secret_file, public_file = packing.keygen(out)
    _tell(
        as_json,
        {"key": public.name, "secret_key": str(secret_file), "public_key": str(public_file)},
        f"made key {public.name}",
        f"secret key {secret_file}: back it up, keep it off every robot",
        f"public key {public_file}: name it in policy.trusted_keys of the robot file",
    )


@app.command()
def pack(
    folder: Folder,
    key: Annotated[
        Path | None, typer.Option(metavar="SECRET", help="Secret key file; none: the folder is signed already.")
    ] = None,
    section: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Draft: a manifest or its dzedge section; none: the folder's.")
    ] = None,
    version: Annotated[int | None, typer.Option(min=1, max=2**31, help="Another than the draft's.")] = None,
    container: Annotated[bool, typer.Option("--container", help="Write NAME.dzb beside the folder, too.")] = False,
    trusted: Annotated[
        list[Path] | None, typer.Option(help="Without --key: public key file to trust; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a signed bundle of the files in a folder; or put one that is signed into a container."""
    from dzedge import bundle, packing
    from dzedge.clock import wall_stamp
    from dzedge.container import MANIFEST
    from dzedge.minisign import load_keys

    if not folder.is_dir():
        raise UsageError(f"{folder}: must be a folder")
    if key is None and (not container or section is not None or version is not None):
        raise UsageError("--key is missing: name the secret key to sign with (dzedge bundle keygen makes one)")
    keys = load_keys(tuple(map(str, trusted or [])))
    if key is not None:
        secret = packing.load_secret(key)
        asked = packing.draft(section or folder / MANIFEST, version)
        bundle.pack(folder, asked, secret, wall_stamp(), asked.model_id)
        keys = (*keys, secret.public)
    wrapped = folder.absolute().with_suffix(".dzb") if container else None
    if wrapped is not None:
        packing.contain(folder, wrapped, keys, allow_test_key=True)
    _inspect(wrapped or folder, keys, as_json, f"packed {wrapped or folder}")


@app.command()
def sign(
    folder: Folder,
    key: Annotated[Path, typer.Option(metavar="SECRET", help="Secret key file.")],
    as_json: Json = False,
) -> None:
    """Sign a bundle again, by another key: its files must be those that its manifest lists."""
    from dzedge import bundle, packing

    if not folder.is_dir():
        raise UsageError(f"{folder}: must be a folder; unpack a container first")
    secret = packing.load_secret(key)
    bundle.sign(folder, secret)
    _inspect(folder, (secret.public,), as_json, f"signed {folder}")


@app.command()
def unpack(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Container NAME.dzb.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to make, by custom NAME.dzp.")],
    key: Trusted = None,
    as_json: Json = False,
) -> None:
    """Make a folder of a container, once every byte of it is verified; exit code 5 and no folder otherwise."""
    from dzedge import packing
    from dzedge.minisign import load_keys

    keys = load_keys(tuple(map(str, key or [])))
    packing.unpack(path, out, keys, allow_test_key=True)
    _inspect(out, keys, as_json, f"unpacked into {out}")


@app.command()
def verify(
    path: Bundle,
    key: Trusted = None,
    golden: Annotated[bool, typer.Option("--golden", help="Also let it decide once, and compare.")] = False,
    as_json: Json = False,
) -> None:
    """Check signature, every file and every graph; exit code 5 where anything is not as signed, or not sound. With
    --golden: 1 where this machine decides otherwise than the one that exported the bundle."""
    from dzedge import console
    from dzedge.robot import inspected_bundle

    opened = inspected_bundle(path, key or [])
    facts = console.bundle_facts(opened)
    words = [f"{path}: as signed", *_lines(facts)]
    if not golden:
        _tell(as_json, facts, *words)
        return
    from dataclasses import asdict

    from dzedge.engine import Machine
    from dzedge.golden import Golden

    found = Golden(opened).check(Machine.detect())
    _tell(as_json, facts | {"golden": asdict(found) | {"ok": found.ok}}, *words, str(found))
    raise typer.Exit(0 if found.ok else 1)


@app.command()
def show(path: Bundle, key: Trusted = None, as_json: Json = False) -> None:
    """Show what is in a bundle, once it is verified."""
    from dzedge import console
    from dzedge.robot import inspected_bundle

    opened = inspected_bundle(path, key or [])
    facts = console.bundle_facts(opened)
    document = facts | {"manifest": console.bundle_manifest(opened)}
    _tell(as_json, document, *_lines(facts), console.graph_table(opened))


def _inspect(path: Path, keys: tuple[Any, ...], as_json: bool, words: str) -> None:
    """Open a bundle as anybody would, and say what it is."""
    from dzedge import console
    from dzedge.bundle import open_bundle

    facts = console.bundle_facts(open_bundle(path, keys, allow_test_key=True))
    _tell(as_json, facts, words, *_lines(facts))


def _lines(facts: dict[str, Any]) -> list[str]:
    return [f"{name}: {value}" for name, value in facts.items()]


def _tell(as_json: bool, document: dict[str, Any], *words: Any) -> None:
    from dzedge import console

    if as_json:
        console.emit(document)
    else:
        console.tell(*words)
