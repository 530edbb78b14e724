"""`promptnet export`: a subject as files that other software reads, read back and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from promptnet.commands._checks import check_choice, check_choices, check_counts, check_files, check_seed
from promptnet.commands._loading import EMBEDDED, check_model, find_base, load_pipeline
from promptnet.commands._progress import status
from promptnet.export.format_names import ALONE, FILES, GRAPHS, PARTS
from promptnet.io.progress import counting_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from promptnet import Subject
    from promptnet.export import Passport, StaticSubject, Verdict

THE_FACE_TOO = "An export is the face, too: treat it like a photograph. What others have copied cannot be recalled."


def export(
    to: str,
    out: Path,
    subject: Path | None = None,
    run: Path | None = None,
    card: list[Path] | None = None,
    static: Literal["distilled", "mean"] = "distilled",
    dtype: Literal["float32", "float16"] = "float32",
    graphs: list[str] | None = None,
    rank: int = 8,
    verify: bool = True,
    consent: str = "",
    seed: int = 0,
    reference_base: bool = False,
    base: str = EMBEDDED,
    promptnet: str | None = None,
    image_encoder: str | None = None,
    device: str = "auto",
) -> None:
    """Write a subject, an encoder or an edit card as other software loads it, and say what is lost.

    Args:
        to: formats with commas between. Of a subject: kohya, diffusers, peft, textual-inversion, word-table. Of an
            encoder: bundle. Of an edit card: prompt-schedule. Of the networks, without a person: onnx, aoti
        out: folder to write into; made if it does not exist, its parent must exist
        subject: the subject file of `promptnet customize`
        run: a training run's folder or an encoder's, for a bundle; null takes the base model's own encoder
        card: edit cards, to put into a bundle or to write as a prompt schedule
        static: words and LoRA of the files: distilled fits them to the subject's own predictions, mean averages the
            words over noise levels
        dtype: of the numbers in a subject's files; float16 halves them
        graphs: networks to compile for onnx and aoti: unet, vae_decoder, text_encoder, text_encoder_2, promptnet (null:
            all)
        rank: of the LoRA layers that compiled graphs take as inputs
        verify: read every file back with the loaders it is for, in a fresh process; exit status 1 if one is wrong
        consent: statement of the person's consent; its SHA-256 is kept in the files
        seed: makes the result reproducible
        reference_base: name the base model in a bundle, in place of copying its weights
        base: base model, a folder in diffusers layout or a Hub id
        promptnet: folder of the encoder, if the base model has none or another one is wanted
        image_encoder: CLIP image encoder for that encoder, a folder or a Hub id
        device: auto, cpu, cuda, ...
    """
    kinds = to.split(",")
    check_words(kinds, out, subject, card, graphs, rank=rank, seed=seed)
    if kinds == ["prompt-schedule"]:
        paths = export_schedules(card or [], make_folder(out))
    else:
        check_model(base, device, promptnet, image_encoder)
        if kinds == ["bundle"]:
            paths = [export_bundle(out, base, run, card or [], image_encoder, device, with_base=not reference_base)]
        elif kinds[0] in GRAPHS:
            paths = export_graphs(
                kinds, out, base, promptnet, image_encoder, device, names=graphs, rank=rank, verify=verify
            )
        else:
            paths = export_files(
                kinds, out, subject, base, promptnet, image_encoder, device,
                static=static, dtype=dtype, consent=consent, verify=verify, seed=seed,
            )  # fmt: skip
    for path in paths:
        print(path)


def check_words(
    kinds: Sequence[str],
    out: Path,
    subject: Path | None,
    card: list[Path] | None,
    graphs: list[str] | None,
    *,
    rank: int,
    seed: int,
) -> None:
    """Check the words of the command line.

    Raises:
        OSError: a file does not exist.
        ValueError: a format is not known, formats do not go together, what they need is missing, or a value cannot be.
    """
    from promptnet.io.atomic import check_folder

    for kind in kinds:
        check_choice("to", kind, (*FILES, *GRAPHS, *ALONE))
    groups = [group for group in (FILES, GRAPHS, *((name,) for name in ALONE)) if set(group) & set(kinds)]
    if len(groups) > 1:
        raise ValueError(f"--to {','.join(kinds)}: {groups[0][0]} and {groups[1][0]} are exported in commands apart")
    check_choices("graphs", graphs, PARTS)
    check_counts(1, rank=rank)
    check_seed(seed)
    check_folder(out)
    if groups == [FILES] and subject is None:
        raise ValueError("what is to be exported? Give --subject, a file of `promptnet customize`")
    if kinds == ["prompt-schedule"] and not card:
        raise ValueError("what is to be written as a prompt schedule? Give --card, a file of `promptnet learn-edit`")
    check_files("subject", [subject])
    check_files("card", card or [])


def export_graphs(
    kinds: Sequence[str],
    out: Path,
    base: str,
    promptnet: str | None,
    image_encoder: str | None,
    device: str,
    *,
    names: list[str] | None,
    rank: int,
    verify: bool,
) -> list[Path]:
    """Compile the networks, a folder for each format; exit with status 1 if a graph computes something else."""
    from promptnet.export.graphs.folder import write_graphs
    from promptnet.export.graphs.parts import graphs_of
    from promptnet.export.graphs.verification import verify_graphs

    folder = make_folder(out)
    with status("loading the base model"):
        pipe: Any = load_pipeline(base, device, promptnet, image_encoder)
    graphs = graphs_of(pipe, names, rank)
    paths, verdicts = [], []
    for kind in kinds:
        with counting_bar(f"compiling for {kind}", len(graphs), "graphs") as advance:
            paths.append(write_graphs(pipe, graphs, kind, folder / kind, base=find_base(base), on_graph=advance))
        if verify:
            with status("running the graphs"):
                verdicts += verify_graphs(graphs, paths[-1])
    finish(verdicts, "run in a fresh process")
    return paths


def export_files(
    kinds: Sequence[str],
    out: Path,
    subject: Path | None,
    base: str,
    promptnet: str | None,
    image_encoder: str | None,
    device: str,
    **how: Any,
) -> list[Path]:
    """Write a subject's files."""
    from promptnet import Subject
    from promptnet.export.registry import formats_named

    assert subject is not None
    names = [found.name for found in formats_named(kinds)]
    loaded = Subject.load(subject)
    folder = make_folder(out)
    with status("loading the base model"):
        pipe: Any = load_pipeline(base, device, promptnet, image_encoder)
    return export_subject(pipe, base, loaded, names, folder, subject.stem, **how)


def export_schedules(cards: Sequence[Path], folder: Path) -> list[Path]:
    """Write edit cards as prompt schedules."""
    from promptnet.export.prompt_schedules import prompt_schedule
    from promptnet.inference.editing.card import EditCard
    from promptnet.io.atomic import write_whole

    written = []
    for card in cards:
        page = prompt_schedule(EditCard.load(card)).page()
        written.append(folder / f"{card.stem}-prompt-schedule.txt")
        write_whole(written[-1], page, public=True)
        show_note(page)
    return written


def export_bundle(
    out: Path,
    base: str,
    run: Path | None,
    cards: Sequence[Path],
    image_encoder: str | None,
    device: str,
    *,
    with_base: bool,
) -> Path:
    """Write a pipeline with its encoder as one folder."""
    from promptnet.export.bundle import find_encoder, write_bundle

    encoder = None if run is None else str(find_encoder(run))
    with status("writing the bundle"):
        pipe: Any = load_pipeline(base, device, encoder, image_encoder)
        return write_bundle(pipe, out, base=find_base(base), cards=cards, with_base=with_base)


def make_folder(folder: Path) -> Path:
    """Return the output folder, made if only its last part is missing.

    Raises:
        ValueError: its parent does not exist, or it is a file.
    """
    from promptnet.io.atomic import check_folder

    if not folder.exists() and folder.parent.is_dir():
        folder.mkdir(mode=0o700)
    return check_folder(folder)


def export_subject(
    pipe: Any,
    base: str,
    subject: Subject,
    names: Sequence[str],
    folder: Path,
    stem: str,
    *,
    static: str,
    consent: str,
    verify: bool,
    seed: int,
    dtype: str = "float32",
) -> list[Path]:
    """Write, read back and judge; exit with status 1 if a file is wrong."""
    from promptnet.export import write_files

    content = make_content(pipe, subject, names, static, seed).stored_as(dtype)
    paths = write_files(content, names, folder, stem, make_passport(content, base, consent))
    written_as = "S*" if list(names) == ["word-table"] else f"<{stem}>"
    show_note(f"{THE_FACE_TOO} A prompt names the person as {written_as}.")
    if verify:
        from promptnet.export import verify as read_back
        from promptnet.export.verification.judged import judge_beside

        judge = judge_beside(find_base(base))
        with status("reading the files back"):
            verdicts = read_back(
                pipe.to("cpu"), find_base(base), subject, content, paths, prompt=prompt_of(pipe), judge=judge
            )
        if judge is None:
            show_note("There is no judge beside this base model: images were not judged.")
        finish(verdicts)
    return list(paths.values())


def finish(verdicts: Sequence[Verdict], title: str = "read back in a fresh process") -> None:
    """Show verdicts, and exit with status 1 if a file is wrong."""
    if verdicts:
        show_verdicts(verdicts, title)
    if not all(verdict.is_good for verdict in verdicts):
        raise SystemExit(1)


def prompt_of(pipe: Any) -> str:
    """Return a prompt that the base model knows: what subjects are tuned with."""
    return (pipe.config.get("tuning") or {}).get("prompts", ["a photo of S*"])[0]


def make_content(pipe: Any, subject: Subject, names: Sequence[str], how: str, seed: int) -> StaticSubject:
    """Make what files of these formats are written from."""
    from dataclasses import replace

    from promptnet.export.static_words import timed_words

    timed = "word-table" in names
    # A table has words of its own; nothing is distilled for it.
    static = make_static(pipe, subject, "mean" if timed and len(names) == 1 else how, seed)
    return replace(static, timed=timed_words(pipe, subject, seed)) if timed else static


def make_static(pipe: Any, subject: Subject, how: str, seed: int) -> StaticSubject:
    """Make static words and a LoRA, with a bar."""
    from promptnet.export.distillation import DistillConfig, distill, num_rounds
    from promptnet.export.static_words import mean_static

    if how == "mean":
        return mean_static(pipe, subject, seed)
    config = DistillConfig(seed=seed)
    with counting_bar("distilling", num_rounds(config), "rounds") as advance:
        return distill(pipe, subject, config, on_step=advance)


def make_passport(static: StaticSubject, base: str, consent: str) -> Passport:
    """Say where an export comes from."""
    from promptnet.export.passport import Passport, consent_hash, licence_of, now

    return Passport(
        static.fingerprint,
        static.class_word,
        static.base,
        static.recipe,
        licence_of(find_base(base)),
        consent_hash(consent),
        now(),
    )


def show_note(text: str) -> None:
    """Print a line on stderr, for people and not for pipes."""
    from rich.console import Console

    Console(stderr=True).print(text, soft_wrap=True, highlight=False)


def show_verdicts(verdicts: Sequence[Verdict], title: str) -> None:
    """Print a table on stderr: what was read, how exactly, and what static files lose."""
    from rich.console import Console
    from rich.table import Table

    from promptnet.export.verification.verdict import summary

    judged = ("identity", "exact", "same") if any(verdict.images for verdict in verdicts) else ()
    caption = "differences relative to the network's output"
    if judged:
        caption += "; identity: the reference's fields that the judge reads again"
    table = Table(title=title, caption=caption)
    names = ("format", "reader", "keys", "difference", "loss: subject", "loss: unconditional", *judged, "verdict")
    for name in names:
        table.add_column(name)
    for verdict in verdicts:
        keys = f"{verdict.matched} of {verdict.found}, {len(verdict.missing)} missing"
        losses = (relative(verdict.loss, row) for row in ("subject", "unconditional"))
        worst = max((values["relative"] for values in verdict.difference.values()), default=float("nan"))
        said = "good" if verdict.is_good else "wrong"
        table.add_row(verdict.format, verdict.reader, keys, f"{worst:.1e}", *losses, *seen(verdict, judged), said)
    Console(stderr=True).print(table)
    for verdict in verdicts:
        if not verdict.is_good:
            show_note(f"{verdict.file}, read by {verdict.reader}: {summary(verdict)}")


def seen(verdict: Verdict, columns: Sequence[str]) -> list[str]:
    """Return what the judge said as texts: identity with the file, of the exact pipeline, and fields alike in both."""
    names = ("identity", "identity_exact", "same_fields")
    return [f"{verdict.images[name]:.2f}" if verdict.images else "-" for name in names[: len(columns)]]


def relative(distances: Mapping[str, Mapping[str, float]], row: str) -> str:
    """Return a row's relative difference as text."""
    return f"{distances[row]['relative']:.3f}" if row in distances else "-"
