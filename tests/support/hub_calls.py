"""Calls of the tests' Hub by the clients it stands in for."""

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import HfHubHTTPError

CARD = """---
license: mit
tags: [r-drop]
datasets: [nyu-mll/glue]
base_model: google-bert/bert-base-cased
pipeline_tag: text-classification
library_name: transformers
model-index:
- name: m
  results:
  - task: {type: text-classification}
    dataset: {type: nyu-mll/glue, name: GLUE MRPC, config: mrpc}
    metrics: [{type: accuracy, value: 0.8}]
---
See https://arxiv.org/abs/2106.14448
"""
WEIGHTS = bytes(range(256)) * 400  # 102 400 bytes


def add(api, path="a.txt", content=b"a", repo="ada/m", **options):
    return api.create_commit(repo, [CommitOperationAdd(path, content)], commit_message=f"Add {path}", **options)


def status(call, *args, **kwargs):
    with pytest.raises(HfHubHTTPError) as error:
        call(*args, **kwargs)
    return error.value.response.status_code
