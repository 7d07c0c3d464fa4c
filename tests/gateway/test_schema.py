"""What the OpenAPI document says, against a real gateway: by schemathesis, which makes requests of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.gateway.world import FakeEngine, Gateway, backend

# Of each path; more of them by `make fuzz`.
EXAMPLES = str(int(os.environ.get("SAGE_FUZZ_EXAMPLES", "100")) // 12)
MANAGEMENT = "/v1/management"
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def test_no_request_of_the_document_is_too_much(gateway: Gateway, engine: FakeEngine, tmp_path: Path) -> None:
    """No 5xx, and replies of the types and shapes that are documented."""
    gateway.serve({"fake": [backend(engine.url)]})
    document = gateway.client.get("/schema/openapi.json").json()
    document["paths"] = {path: told for path, told in document["paths"].items() if MANAGEMENT not in path}
    for path in document["paths"].values():
        for content in path.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if "model" in content["schema"].get("properties", {}):
                # Names at random would all be refused at the same place.
                content["schema"]["properties"]["model"] = {"enum": ["fake", "nothing-like-it"]}
    check(document, gateway, tmp_path, EXAMPLES)


def test_no_request_of_management_is_too_much(gateway: Gateway, tmp_path: Path) -> None:
    """The same of what starts and stops engines; here none can start, as there is no runtime."""
    document = gateway.client.get("/schema/openapi.json").json()
    document["paths"] = {path: told for path, told in document["paths"].items() if MANAGEMENT in path}
    for path in document["paths"].values():
        for told in path.values():
            # Nobody waits here; how operations end is tested where they can end well.
            told["parameters"] = [one for one in told.get("parameters", ()) if one["name"] != "wait"]
            for content in told.get("requestBody", {}).get("content", {}).values():
                known = content["schema"]["properties"]
                known["model_id"] = {"enum": ["org/m", "m"]}
                if "url" in known:
                    known["url"] = {"enum": ["http://127.0.0.1:9", "http://169.254.169.254", "nothing"]}
    check(document, gateway, tmp_path, "4")


def check(document: dict[str, Any], gateway: Gateway, folder: Path, examples: str) -> None:
    """Runs schemathesis over a document; nothing may fail, and nothing may be logged as a defect."""
    written = folder / "openapi.json"
    written.write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(written), "--url", gateway.url]
    command += ["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", examples, "--seed", "1"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-1000:]
    assert "Traceback" not in "".join(gateway.output)


def test_bodies_and_errors_are_described(gateway: Gateway) -> None:
    document = gateway.client.get("/schema/openapi.json").json()
    chat = document["paths"]["/v1/chat/completions"]["post"]
    body = chat["requestBody"]["content"]["application/json"]["schema"]
    assert (body["required"], body["additionalProperties"]) == (["model"], True)
    form = document["paths"]["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]
    assert form["multipart/form-data"]["schema"]["required"] == ["model", "file"]
    shape = chat["responses"]["404"]["content"]["application/json"]["schema"]
    assert shape == {"$ref": "#/components/schemas/ErrorBody"}


def test_management_is_described_with_examples(gateway: Gateway) -> None:
    paths = gateway.client.get("/schema/openapi.json").json()["paths"]
    told = {f"{method.upper()} {path}" for path in paths for method in paths[path] if MANAGEMENT in path}
    directory = gateway.client.get(MANAGEMENT).json()["routes"]
    assert told == {route.replace("{id}", "{operation_id}") for route in directory}
    body = paths[f"{MANAGEMENT}/engines"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["required"] == ["model_id"]
    assert set(body["examples"]["typical"]["value"]) <= set(body["schema"]["properties"])
    answered = paths[f"{MANAGEMENT}/status"]["get"]["responses"]["200"]["content"]["application/json"]
    assert answered["schema"] == {"$ref": "#/components/schemas/Status"}
