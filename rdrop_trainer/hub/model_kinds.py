"""The task of a model on the Hub, and the Auto class that loads it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import transformers

# The Hub's task -> Auto class. Of several tasks with the same class, the first is the default tag of a model. Of the
# classes that know a model, three of them BART for generation, the first is the right one.
AUTO_CLASSES = {
    "text2text-generation": "AutoModelForSeq2SeqLM",
    "summarization": "AutoModelForSeq2SeqLM",
    "translation": "AutoModelForSeq2SeqLM",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "multiple-choice": "AutoModelForMultipleChoice",
    "question-answering": "AutoModelForQuestionAnswering",
    "fill-mask": "AutoModelForMaskedLM",
    "text-generation": "AutoModelForCausalLM",
    "image-classification": "AutoModelForImageClassification",
    "video-classification": "AutoModelForVideoClassification",
    "audio-classification": "AutoModelForAudioClassification",
    "automatic-speech-recognition": "AutoModelForSpeechSeq2Seq",
    "image-text-to-text": "AutoModelForImageTextToText",
}
_CTC = "AutoModelForCTC"  # the other class of automatic-speech-recognition
# The tasks among them for which `transformers.pipeline` has a pipeline
PIPELINES = frozenset(
    "text-classification token-classification fill-mask text-generation image-classification video-classification "
    "audio-classification automatic-speech-recognition image-text-to-text".split()
)


def classes_of(config: Mapping[str, Any]) -> list[str]:
    """The class names in a configuration, which anybody may have written; none if they are not a list of texts."""
    names = config.get("architectures")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def auto_class_name(architectures: Iterable[str] | None, pipeline_tag: str | None = None) -> str | None:
    """The Auto class of a model, such as "AutoModelForSequenceClassification"; None if it is not known.

    The class that the weights were saved from (`architectures`, as a configuration lists them) decides: another head
    would start from random weights. If transformers does not have that class, the Hub's task (`pipeline_tag`) decides.
    """
    for architecture in architectures or ():
        for name in dict.fromkeys([*AUTO_CLASSES.values(), _CTC]):
            for known in auto_class(name)._model_mapping._model_mapping.values():
                if architecture in ([known] if isinstance(known, str) else known):  # some models have several
                    return name
    return AUTO_CLASSES.get(pipeline_tag)


def auto_class(name: str) -> type[Any]:
    """The Auto class with this name."""
    return getattr(transformers, name)


def pipeline_tag_of(architecture: str) -> str | None:
    """The Hub's task of a model class; None if transformers does not have the class."""
    name = auto_class_name([architecture])
    if name == _CTC:
        return "automatic-speech-recognition"
    return next((tag for tag, auto_name in AUTO_CLASSES.items() if auto_name == name), None)
