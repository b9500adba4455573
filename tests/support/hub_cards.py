"""What the Hub checks in a card's metadata: POST /api/validate-yaml."""

import math
import re

import yaml

LICENSES = set(
    "apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 "
    "bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc "
    "cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 "
    "cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 "
    "cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 "
    "eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl "
    "apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib "
    "pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 "
    "llama4 grok2-community gemma unknown other".split()
)
PIPELINE_TAGS = set(
    "text-classification token-classification table-question-answering question-answering zero-shot-classification "
    "translation summarization feature-extraction text-generation fill-mask sentence-similarity text-to-speech "
    "text-to-audio automatic-speech-recognition audio-to-audio audio-classification audio-text-to-text "
    "voice-activity-detection depth-estimation image-classification object-detection image-segmentation "
    "text-to-image image-to-text image-to-image image-to-video unconditional-image-generation video-classification "
    "reinforcement-learning robotics tabular-classification tabular-regression tabular-to-text table-to-text "
    "multiple-choice text-ranking text-retrieval time-series-forecasting text-to-video image-text-to-text "
    "visual-question-answering document-question-answering zero-shot-image-classification graph-ml mask-generation "
    "zero-shot-object-detection text-to-3d image-to-3d image-feature-extraction video-text-to-text "
    "keypoint-detection visual-document-retrieval any-to-any video-to-video other".split()
)
REPO_ID = re.compile(r"(?:[A-Za-z0-9][\w.-]{0,95}/)?[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z]{2,4})?|code|multilingual", re.ASCII)
FRONT_MATTER = re.compile(r"\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n?^---[ \t]*$", re.DOTALL | re.MULTILINE)


def is_repo_id(name) -> bool:
    return (
        isinstance(name, str)
        and REPO_ID.fullmatch(name) is not None
        and not name.endswith((".git", "-", "."))
        and "--" not in name
        and ".." not in name
    )


def metadata(text: str) -> tuple[dict | None, list[str]]:
    """The metadata in a README's front matter (None without one) and what makes it unreadable."""
    block = FRONT_MATTER.match(text)
    if not block or not block[1].strip():
        return None, []
    try:
        data = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return None, ["Invalid YAML: " + " ".join(str(error).split())]
    if not isinstance(data, dict):
        return None, ["The metadata must be a YAML mapping"]
    return data, []


def validate(text: str, kind: str = "model") -> tuple[list[str], list[str]]:
    """Errors and warnings for the README of a model or data set."""
    data, errors = metadata(text)
    if errors:
        return errors, []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    errors, warnings = [], []
    for name in ("tags", "language", "license", "datasets", "base_model", "metrics"):
        lists_only = name in ("tags", "datasets", "metrics")
        value = data.get(name)
        values = value if isinstance(value, list) else [value]
        if value is None:
            continue
        if lists_only and not isinstance(value, list):
            errors.append(f'"{name}" must be an array')
        elif any(not isinstance(one, str) or not one for one in values):
            errors.append(f'"{name}" must hold strings only')
        else:
            errors += [f'"{name}" with value "{one}" is not valid.' for one in values if not CHECKS[name](one)]
    if kind == "model":
        for name in ("pipeline_tag", "library_name"):
            if name in data and not isinstance(data[name], str):
                errors.append(f'"{name}" must be a string')
        if isinstance(data.get("pipeline_tag"), str) and data["pipeline_tag"] not in PIPELINE_TAGS:
            warnings.append(f'The pipeline tag "{data["pipeline_tag"]}" is not in the official list')
        if "model-index" in data:
            errors += index_errors(data["model-index"])
    return errors, warnings


CHECKS = {
    "tags": lambda tag: len(tag) <= 100,
    "metrics": lambda metric: True,
    "language": LANGUAGE.fullmatch,
    "license": LICENSES.__contains__,
    "datasets": is_repo_id,
    "base_model": is_repo_id,
}


def index_errors(index) -> list[str]:
    """A model-index that is not a list of {name, results: [{task, dataset, metrics}]}."""
    if not isinstance(index, list) or not index:
        return ['"model-index" must be an array']
    errors = []
    for m, model in enumerate(index):
        at = f"model-index[{m}]"
        if not isinstance(model, dict) or not model.get("name") or not isinstance(model["name"], str):
            errors.append(f'"{at}.name" is required')
        results = model.get("results") if isinstance(model, dict) else None
        if not isinstance(results, list) or not results:
            errors.append(f'"{at}.results" is required and must hold a result')
            continue
        for r, result in enumerate(results):
            errors += result_errors(result, f"{at}.results[{r}]")
    return errors


def result_errors(result, at: str) -> list[str]:
    if not isinstance(result, dict):
        return [f'"{at}" must be an object']
    errors = []
    for part, names in (("task", ["type"]), ("dataset", ["type", "name"])):
        for name in names:
            value = result[part].get(name) if isinstance(result.get(part), dict) else None
            if not isinstance(value, str) or not value:
                errors.append(f'"{at}.{part}.{name}" is required')
    metrics = result.get("metrics")
    if not isinstance(metrics, list) or not metrics:
        return [*errors, f'"{at}.metrics" is required and must hold a metric']
    for n, metric in enumerate(metrics):
        if not isinstance(metric, dict) or not isinstance(metric.get("type"), str) or not metric["type"]:
            errors.append(f'"{at}.metrics[{n}].type" is required')
        elif not is_value(metric.get("value")):
            errors.append(f'"{at}.metrics[{n}].value" is required and must be finite')
    return errors


def is_value(value) -> bool:
    """A finite number, or, as the Hub allows, a text or an object (ROUGE's parts, say)."""
    if isinstance(value, bool) or value is None or value == "":
        return False
    if isinstance(value, dict):
        return bool(value) and all(is_value(part) for part in value.values())
    return isinstance(value, str) or (isinstance(value, (int, float)) and math.isfinite(value))
