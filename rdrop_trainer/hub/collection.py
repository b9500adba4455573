"""A collection on the Hub: made if there is none, and given the models and notes that it is to have."""

from __future__ import annotations

from collections.abc import Mapping

from huggingface_hub import Collection

from .client import connect, failure, with_retries

# The Hub takes no longer ones
_LONGEST_DESCRIPTION = 150  # characters
_LONGEST_NOTE = 500


def keep_collection(
    title: str,
    namespace: str,
    notes: Mapping[str, str],
    *,
    description: str = "",
    private: bool = False,
    token: str | bool | None = None,
) -> Collection:
    """See to it that a collection has some models, each with its note. What it has besides stays.

    Args:
        title: by which it is found again.
        namespace: its user or organisation.
        notes: repository -> note, of which 500 characters are kept.
        description: of the collection, of which 150 characters are kept.
        private: whether a new one is private.

    Returns:
        The collection, as it was before the models were added.
    """
    api, description = connect(token), description[:_LONGEST_DESCRIPTION]

    def keep() -> Collection:
        found = api.create_collection(
            title, namespace=namespace, description=description, private=private, exists_ok=True
        )
        if description and found.description != description:
            api.update_collection_metadata(found.slug, description=description)
        items = {item.item_id: item for item in found.items if item.item_type == "model"}
        for repo_id, whole in notes.items():
            note, item = whole[:_LONGEST_NOTE], items.get(repo_id)
            if item is None:
                api.add_collection_item(found.slug, repo_id, "model", note=note, exists_ok=True)
            elif item.note != note:
                api.update_collection_item(found.slug, item.item_object_id, note=note)
        return found

    try:
        return with_retries(keep)
    except Exception as error:
        raise failure(f"the collection {title!r} of {namespace} is not complete", error) from None
