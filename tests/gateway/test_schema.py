"""What the OpenAPI document says, against a real gateway: by schemathesis, which makes requests of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.gateway.world import FakeEngine, Gateway, backend

# Of each path; more of them by `make fuzz`.
EXAMPLES = str(int(os.environ.get("SAGE_FUZZ_EXAMPLES", "100")) // 12)
CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance"


def test_no_request_of_the_document_is_too_much(gateway: Gateway, engine: FakeEngine, tmp_path: Path) -> None:
    """No 5xx, and replies of the types and shapes that are documented."""
    gateway.serve({"fake": [backend(engine.url)]})
    document = gateway.client.get("/schema/openapi.json").json()
    for path in document["paths"].values():
        for content in path.get("post", {}).get("requestBody", {}).get("content", {}).values():
            if "model" in content["schema"].get("properties", {}):
                # Names at random would all be refused at the same place.
                content["schema"]["properties"]["model"] = {"enum": ["fake", "nothing-like-it"]}
    written = tmp_path / "openapi.json"
    written.write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(written), "--url", gateway.url]
    command += ["--checks", CHECKS, "--phases", "coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "1"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
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
