"""Request bodies of the Gradient API, as `gradientai` 1.13.1 sends them.

Unknown fields are refused, never ignored. The SDK sends `null` for what its caller left out.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

MAX_RANK = 32
MAX_GENERATED_TOKENS = 511
MAX_EMBEDDING_INPUTS = 256
# Of one call, which is one optimiser step; the API names no limit, and a call cannot be cancelled.
MAX_SAMPLES = 256
MAX_NAME = 256

Text = Annotated[str, Field(min_length=1)]


class Body(BaseModel):
    """Base of all request bodies: JSON names in camel case, types taken strictly."""

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, alias_generator=to_camel, strict=True
    )


class LoraHyperparameters(Body):
    """Shape of a new adapter."""

    rank: Annotated[int, Field(gt=0, le=MAX_RANK)] | None = None


class TrainingArguments(Body):
    """How a new adapter will be trained."""

    learning_rate: Annotated[float, Field(gt=0, lt=1)] | None = None


class InitialHyperparameters(Body):
    """Settings of a new adapter, kept for all its steps."""

    lora_hyperparameters: LoraHyperparameters | None = None
    training_arguments: TrainingArguments | None = None


class NewModel(Body):
    """What a new adapter is called, and what it adapts."""

    base_model_id: Text
    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class CreateModel(Body):
    """Body of POST /models."""

    initial_hyperparameters: InitialHyperparameters | None = None
    model: NewModel


class StructuredInput(Body):
    """A piece of a sample: only trainable pieces count for the loss."""

    value: Text
    trainable: bool | None = True
    parse_special_tokens: bool | None = True


class FineTuningParameters(Body):
    """The weight of a sample's loss."""

    multiplier: Annotated[float, Field(gt=0)] | None = None


class FineTuneSample(Body):
    """One sample: a text, learnt whole, or pieces."""

    inputs: Text | Annotated[list[StructuredInput], Field(min_length=1)]
    fine_tuning_parameters: FineTuningParameters | None = None


class FineTune(Body):
    """Body of POST /models/{id}/fine-tune."""

    samples: Annotated[list[FineTuneSample], Field(min_length=1, max_length=MAX_SAMPLES)]


class Complete(Body):
    """Body of POST /models/{id}/complete.

    `autoTemplate` is on by default in the API's schema, and off where it is null, which is what
    the SDK sends unless its caller asks for it.
    """

    query: Text
    auto_template: bool | None = True
    max_generated_token_count: Annotated[int, Field(gt=0, le=MAX_GENERATED_TOKENS)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_k: Annotated[int, Field(gt=0)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    guidance: dict[str, Any] | None = None
    rag: dict[str, Any] | None = None


class EmbeddingInput(Body):
    """One text to embed."""

    input: Text


class Embed(Body):
    """Body of POST /embeddings/{slug}."""

    inputs: Annotated[list[EmbeddingInput], Field(min_length=1, max_length=MAX_EMBEDDING_INPUTS)]
