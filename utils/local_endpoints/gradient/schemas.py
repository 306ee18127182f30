"""Request bodies of the Gradient API, as `gradientai` 1.13.1 sends them.

Unknown fields are refused. The SDK sends `null` for what its caller left out; a field of type
`None` is one that it may send and this server does not support.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_RANK = 32
MAX_GENERATED_TOKENS = 511
MAX_EMBEDDING_INPUTS = 256
# A call is one optimiser step and cannot be cancelled; the API documents no limit.
MAX_SAMPLES = 256

Text = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """Base of all request bodies: JSON names in camel case, types taken strictly."""

    model_config = ConfigDict(
        extra="forbid",
        allow_inf_nan=False,
        alias_generator=to_camel,
        populate_by_name=True,
        strict=True,
    )


class LoraHyperparameters(Body):
    """Shape of a new adapter."""

    rank: Annotated[int, Field(gt=0, le=MAX_RANK)] | None = None


class TrainingArguments(Body):
    """Step size of a new adapter's optimiser."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None


class InitialHyperparameters(Body):
    """Settings of a new adapter, kept for all its steps."""

    lora_hyperparameters: LoraHyperparameters | None = None
    training_arguments: TrainingArguments | None = None


class NewModel(Body):
    """Name and base model of a new adapter."""

    base_model_id: Text
    name: Annotated[str, Field(min_length=1, max_length=256)]


class CreateModel(Body):
    """Body of POST /models."""

    initial_hyperparameters: InitialHyperparameters | None = None
    model: NewModel


class StructuredInput(Body):
    """A piece of a sample: its loss counts unless `trainable` is false."""

    value: Text
    trainable: bool | None = True
    parse_special_tokens: bool | None = True


class FineTuningParameters(Body):
    """Weights of samples, which this server does not support."""

    multiplier: None = None


class FineTuneSample(Body):
    """One sample: a text that is learnt whole, or pieces of one."""

    inputs: Text | Annotated[list[StructuredInput], Field(min_length=1)]
    fine_tuning_parameters: FineTuningParameters | None = None


class FineTune(Body):
    """Body of POST /models/{id}/fine-tune."""

    samples: Annotated[list[FineTuneSample], Field(min_length=1, max_length=MAX_SAMPLES)]


class Complete(Body):
    """Body of POST /models/{id}/complete: a text that is continued as it stands."""

    query: Text
    max_generated_token_count: Annotated[int, Field(gt=0, le=MAX_GENERATED_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(gt=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    auto_template: None = None
    guidance: None = None
    rag: None = None


class EmbeddingInput(Body):
    """One text to embed."""

    input: Text


class Embed(Body):
    """Body of POST /embeddings/{slug}."""

    inputs: Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
