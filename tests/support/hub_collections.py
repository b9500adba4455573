"""The local Hub's collections: titles that an owner has once, items with notes, and the Hub's limits of both."""

import re

from support.hub_repos import Refusal, now
from support.hub_routes import known, readable, route

SLUG = r"/api/collections/(?P<slug>[^/]+/[^/]+)"


def owned(hub, request, slug: str) -> dict:
    found = readable_collection(hub, request, slug)
    if known(request) != found["owner"]["name"] or not request.write:
        raise Refusal(403, f"You don't have the rights to write to {slug}")
    return found


def readable_collection(hub, request, slug: str) -> dict:
    found = hub.collections.get(slug)
    if found is None or (found["private"] and found["owner"]["name"] != request.user):
        raise Refusal(404, f"Collection {slug} not found")
    return found


def check_length(text: str | None, most: int, what: str):
    if text is not None and len(text) > most:
        raise Refusal(400, f"{what} must not have more than {most} characters")


@route("collection", "POST", "/api/collections")
def create(hub, request):
    body = request.json()
    owner, title = body["namespace"], body["title"]
    if owner != known(request) or not request.write:
        raise Refusal(403, f'You don\'t have the rights to create a collection under the namespace "{owner}"')
    check_length(body.get("description"), 150, "description")
    slug = f"{owner}/{re.sub(r'[^a-z0-9]+', '-', title.lower()).strip('-')}-{len(title):024x}"
    if slug in hub.collections:
        raise Refusal(409, "This collection already exists", slug=slug)
    hub.collections[slug] = {
        "slug": slug,
        "title": title,
        "description": body.get("description"),
        "owner": {"name": owner},
        "items": [],
        "lastUpdated": now(),
        "position": 0,
        "private": body["private"],
        "theme": "green",
        "upvotes": 0,
    }
    return 200, hub.collections[slug], {}


@route("collection", "GET", SLUG)
def read(hub, request, slug):
    return 200, readable_collection(hub, request, slug), {}


@route("collection", "PATCH", SLUG)
def change(hub, request, slug):
    found, body = owned(hub, request, slug), request.json()
    check_length(body.get("description"), 150, "description")
    found.update({key: body[key] for key in ("title", "description", "private", "position", "theme") if key in body})
    return 200, {"success": True, "data": found}, {}


@route("collection-item", "POST", f"{SLUG}/items")
def add(hub, request, slug):
    found, body = owned(hub, request, slug), request.json()
    item, note = body["item"], body.get("note")
    check_length(note, 500, "note")
    readable(hub, request, item["type"], item["id"])
    if any((one["type"], one["id"]) == (item["type"], item["id"]) for one in found["items"]):
        raise Refusal(409, "This item is in the collection already")
    place = len(found["items"])
    shown = {"note": {"text": note, "html": note}} if note else {}
    found["items"].append({"_id": f"{place:024x}", **item, "position": place, **shown})
    return 200, found, {}


@route("collection-item", "PATCH", rf"{SLUG}/items/(?P<item>[0-9a-f]+)")
def change_item(hub, request, slug, item):
    found, body = owned(hub, request, slug), request.json()
    check_length(body.get("note"), 500, "note")
    one = next((one for one in found["items"] if one["_id"] == item), None)
    if one is None:
        raise Refusal(404, "No such item")
    if "note" in body:
        one["note"] = {"text": body["note"], "html": body["note"]}
    return 200, {"success": True}, {}
