"""What requests may say. Fields of a drawing are made from `SamplingConfig`, so that the two cannot drift apart."""

from dataclasses import fields
from typing import Annotated, Any, Literal, get_type_hints

import docstring_parser
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, create_model, field_validator, model_validator

from promptnet.inference.sampling.config import SamplingConfig
from promptnet.models.placeholders import find_placeholders

MAX_PROMPT_LENGTH = 2000
MAX_FUSION_STEPS = 8
MAX_SUBJECTS = 4
MAX_EDITS = 8
MAX_SEED = 2**63 - 1
SIZE = r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$"

SAMPLING_FIELDS = tuple(field.name for field in fields(SamplingConfig))
_SHORT_NAMES = {"num_inference_steps": "steps"}


def _sampling_field(name: str, about: str | None) -> Any:
    names = [name, _SHORT_NAMES[name]] if name in _SHORT_NAMES else [name]
    return Field(default=None, description=about, validation_alias=AliasChoices(*names))


def _sampling_model() -> type[BaseModel]:
    about = {param.arg_name: param.description for param in docstring_parser.parse(SamplingConfig.__doc__ or "").params}
    types = get_type_hints(SamplingConfig)
    found: Any = {name: (types[name] | None, _sampling_field(name, about.get(name))) for name in SAMPLING_FIELDS}
    return create_model("Sampling", __config__=ConfigDict(extra="forbid"), **found)


Sampling: Any = _sampling_model()


class Edit(BaseModel):
    """An edit card and how much of it."""

    model_config = ConfigDict(extra="forbid")
    edit: Annotated[str, Field(max_length=100, description="id or name, as in GET /v1/edits")]
    strength: Annotated[float, Field(ge=-4, le=4, allow_inf_nan=False)] = 1.0


class Drawing(Sampling):
    """What to draw: what every way of asking for images has in common."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_LENGTH, description="with S* for the subject")]
    negative_prompt: Annotated[str | None, Field(max_length=MAX_PROMPT_LENGTH)] = None
    edits: Annotated[list[Edit], Field(default_factory=list, max_length=MAX_EDITS)]
    size: Annotated[str | None, Field(pattern=SIZE, description="WIDTHxHEIGHT in pixels; none: as trained")] = None
    n: Annotated[int, Field(ge=1, le=64)] = 1
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED, description="none: by chance, and said in the answer")] = None
    metadata: Annotated[bool, Field(description="whether images say prompt and settings, not seed and model alone")] = (
        False
    )
    preview: Annotated[bool, Field(description="whether events show the image as it stands")] = False

    @field_validator("prompt", "negative_prompt")
    @classmethod
    def _check_text(cls, text: str | None) -> str | None:
        try:
            (text or "").encode()
        except UnicodeEncodeError as error:
            raise ValueError("this is no Unicode text: it has half of a surrogate pair") from error
        return text

    @model_validator(mode="after")
    def _check_sampling(self) -> "Drawing":
        SamplingConfig().replaced(self.sampling())
        if (self.fusion_steps or 0) > MAX_FUSION_STEPS:
            raise ValueError(f"fusion_steps={self.fusion_steps} must be at most {MAX_FUSION_STEPS}")
        return self

    def sampling(self) -> dict[str, Any]:
        """The parameters that are given."""
        given = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        return {name: value for name, value in given.items() if value is not None}


class ImagesRequest(Drawing):
    """POST /v1/images."""

    subjects: Annotated[
        list[str], Field(default_factory=list, max_length=MAX_SUBJECTS, description="who S*, or S1*, S2*, ... are")
    ]

    @model_validator(mode="after")
    def _check_placeholders(self) -> "ImagesRequest":
        check_placeholders(self.prompt, self.negative_prompt, len(self.subjects))
        return self


class GenerationsRequest(Drawing):
    """POST /v1/images/generations, as OpenAI's clients send it; what is ours goes into `extra_body`."""

    model: Annotated[str | None, Field(max_length=200)] = None
    size: Annotated[str | None, Field(pattern=rf"{SIZE}|^auto$")] = None
    response_format: Literal["b64_json"] = "b64_json"
    subject: Annotated[str | list[str] | None, Field(description="who S* is: an id, or a list of them")] = None
    user: Annotated[str | None, Field(max_length=200, description="accepted for clients that send it; not kept")] = None

    @property
    def subjects(self) -> list[str]:
        return [self.subject] if isinstance(self.subject, str) else list(self.subject or [])

    @model_validator(mode="after")
    def _check_placeholders(self) -> "GenerationsRequest":
        if len(self.subjects) > MAX_SUBJECTS:
            raise ValueError(f"subject has {len(self.subjects)} entries, at most {MAX_SUBJECTS}")
        check_placeholders(self.prompt, self.negative_prompt, len(self.subjects))
        return self


class EditsRequest(Drawing):
    """The text fields of POST /v1/images/edits: an image and a prompt; the person is forgotten when it is drawn."""

    model: Annotated[str | None, Field(max_length=200)] = None
    size: Annotated[str | None, Field(pattern=rf"{SIZE}|^auto$")] = None
    response_format: Literal["b64_json"] = "b64_json"
    user: Annotated[str | None, Field(max_length=200)] = None
    class_word: Annotated[str, Field(min_length=1, max_length=200)] = "person"
    consent: bool = False
    allow_foreign: Annotated[bool, Field(description="whether to take an image that the encoder does not know")] = False

    @model_validator(mode="after")
    def _check_placeholders(self) -> "EditsRequest":
        check_placeholders(self.prompt, self.negative_prompt, 1)
        return self


class SubjectRequest(BaseModel):
    """The text fields of POST /v1/subjects."""

    model_config = ConfigDict(extra="forbid")
    class_word: Annotated[str, Field(min_length=1, max_length=200)] = "person"
    consent: bool = False
    allow_foreign: Annotated[bool, Field(description="whether to take an image that the encoder does not know")] = False
    tune: bool = True
    steps: Annotated[int | None, Field(ge=1)] = None
    seed: Annotated[int | None, Field(ge=0, le=MAX_SEED)] = None

    @field_validator("class_word")
    @classmethod
    def _check_class_word(cls, word: str) -> str:
        if not word.strip() or not word.isprintable() or find_placeholders(word):
            raise ValueError("class_word must be a short word, such as 'person' or 'woman'")
        return word


def check_placeholders(prompt: str, negative_prompt: str | None, num_subjects: int) -> None:
    """Refuse a prompt that does not mention its subjects, or others.

    Raises:
        ValueError: says which placeholder.
    """
    if find_placeholders(negative_prompt or ""):
        raise ValueError("the negative prompt mentions a subject, but it takes plain words only")
    found = set(find_placeholders(prompt))
    wanted = {f"S{index}*" for index in range(1, num_subjects + 1)}
    if num_subjects == 1 and found:
        wanted = {"S*"} if "S*" in found else {"S1*"}
        found = found - ({"S1*"} if "S*" in found else set())
    if strangers := sorted(found - wanted):
        raise ValueError(f"the prompt mentions {strangers[0]}, but {num_subjects} subjects are given")
    if missing := sorted(wanted - found):
        raise ValueError(f"the prompt does not mention {missing[0]}: write it where the subject should appear")


# -- answers ----------------------------------------------------------------------------------------------------------


class Progress(BaseModel):
    step: int
    num_steps: int


class DrawnImage(BaseModel):
    id: str
    url: str
    seed: int | None = None


class Output(BaseModel):
    subject: str | None = None
    images: list[DrawnImage] | None = None


class JobError(BaseModel):
    code: str
    message: str


class JobView(BaseModel):
    """A job, with the states of cog and Replicate."""

    id: str
    object: Literal["job"] = "job"
    kind: str
    status: Literal["starting", "processing", "succeeded", "failed", "canceled"]
    created_at: float
    started_at: float | None = None
    completed_at: float | None = None
    place: Annotated[int, Field(description="in the queue; 0 once it runs")] = 0
    progress: Progress
    output: Output | None = None
    error: JobError | None = None
    urls: dict[str, str]


class SubjectView(BaseModel):
    id: str
    object: Literal["subject"] = "subject"
    created_at: float
    used_at: float
    expires_at: float
    bytes: int
    tuned: bool
    num_references: int
    num_images: Annotated[int, Field(description="images that show it, which its deletion takes along")] = 0


class EditView(BaseModel):
    id: str
    object: Literal["edit"] = "edit"
    owned: Annotated[bool, Field(description="false for those that come with the base model")]
    created_at: float | None = None
    bytes: int | None = None


class Page(BaseModel):
    object: Literal["list"] = "list"
    next_cursor: Annotated[str | None, Field(description="the `cursor` of the next page; none: the last")] = None


class JobPage(Page):
    data: list[JobView]


class SubjectPage(Page):
    data: list[SubjectView]


class EditPage(Page):
    data: list[EditView]


class Receipt(BaseModel):
    """What was deleted; keep it: `promptnet serve verify-deletion` proves it to whoever has it."""

    id: str
    object: Literal["deletion"] = "deletion"
    deleted_at: float
    counts: dict[str, int]
    ids: list[str]
