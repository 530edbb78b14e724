"""Find the judges of an evaluation."""

from pathlib import Path

from promptnet.evaluation.harness.tasks import Split


def judge_folder(base: str | Path, split: Split, judge: str | Path | None = None) -> Path:
    """Return the folder of a split's judge: `judge` if given, else `judges/<split>` in the base model or beside it.

    The validation judge scores people of the training split: the test judge is for figures to report.

    Raises:
        ValueError: there is no judge there.
    """
    reader = "validation" if split == "train" else split
    own, beside = (root / "judges" / reader for root in (Path(base).resolve(), Path(base).resolve().parent))
    folder = Path(judge) if judge is not None else (own if own.is_dir() else beside)
    if not (folder / "config.json").is_file():
        raise ValueError(f"there is no judge at '{folder}': name its folder with judge=")
    return folder
