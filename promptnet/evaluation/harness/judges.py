"""Where the judges of an evaluation are found."""

from pathlib import Path

from promptnet.datasets.avatars.render import Split


def judge_folder(base: str | Path, split: Split, judge: str | Path | None = None) -> Path:
    """Where the judge of a split lies: `judge` if given, else the folder `judges/<split>` beside the base model.

    People that training saw are read by the validation judge: the test judge is for figures to report.

    Raises:
        ValueError: there is no judge there.
    """
    reader = "validation" if split == "train" else split
    folder = Path(judge) if judge is not None else Path(base).resolve().parent / "judges" / reader
    if not (folder / "config.json").is_file():
        raise ValueError(f"there is no judge at '{folder}': name its folder with judge=")
    return folder
