"""Starts gcp-storage-emulator in memory on the port given, with the condition ifGenerationMatch=0 added.

An upload that holds nothing yet is said to hold nothing, as the service does: by no Range at all.
"""

import sys
from http import HTTPStatus
from urllib.parse import parse_qs, urlparse

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

# Patched before the server takes references to the handlers. It serves one request after the other, so looking and
# writing are one step.
plain_insert = objects.insert
plain_finalize = objects._finalize_resumable_object
only_if_absent = set()


def is_there(storage, bucket, name):
    try:
        storage.get_file_obj(bucket, name)
        return True
    except NotFound:
        return False


def refuse(response):
    response.status = HTTPStatus.PRECONDITION_FAILED
    response.json({"error": {"code": 412, "message": "conditionNotMet", "errors": [{"reason": "conditionNotMet"}]}})


def insert(request, response, storage, *args, **kwargs):
    conditional = request.query.get("ifGenerationMatch") == ["0"]
    name = request.query.get("name", [""])[0]
    if conditional and is_there(storage, request.params["bucket_name"], name):
        return refuse(response)
    plain_insert(request, response, storage, *args, **kwargs)
    if conditional and request.query.get("uploadType") == ["resumable"]:
        only_if_absent.add(parse_qs(urlparse(response["Location"]).query)["upload_id"][0])


def finalize(response, storage, obj, data, upload_id):
    if upload_id in only_if_absent and is_there(storage, obj["bucket"], obj["name"]):
        return refuse(response)
    plain_finalize(response, storage, obj, data, upload_id)


def incomplete(response, storage, upload_id, fallback_end=0):
    response.status = objects.GoogleHTTPStatus.RESUME_INCOMPLETE
    received = storage.get_resumable_byte_count(upload_id)
    if received > 0:
        response["Range"] = "bytes=0-{}".format(received - 1)


objects.insert = insert
objects._resumable_incomplete = incomplete
objects._finalize_resumable_object = finalize

from gcp_storage_emulator.__main__ import main  # noqa: E402

main(["start", "--host", "127.0.0.1", "--port", sys.argv[1], "--in-memory", "--quiet"])
