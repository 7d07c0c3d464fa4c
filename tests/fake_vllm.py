"""A package named vllm whose server is the fake engine: for tests of the runtime, and of its versions."""

import zipfile
from pathlib import Path

FAKE_ENGINE = Path(__file__).parent / "fake_engine.py"

SERVER = """
import runpy, sys
import vllm

args = sys.argv[1:]
length = int(args[args.index("--max-model-len") + 1]) if "--max-model-len" in args else {own}
if length > {fits}:
    print(
        "(EngineCore pid=9) ValueError: To serve at least one request with the model's max seq len "
        f"({{length}}), "
        "(16.0 GiB KV cache is needed, which is larger than the available KV cache memory (1.8 GiB). "
        "Based on the available memory, the estimated maximum model length is {fits}.",
        file=sys.stderr,
    )
    print("(APIServer pid=8) gives up\\n" * 30, file=sys.stderr)
    sys.exit("RuntimeError: Engine core initialization failed. See root cause above.")
sys.argv += ["--answer", "vllm " + vllm.__version__]
runpy.run_path({engine!r}, run_name="__main__")
"""


def write_package(folder: Path, version: str = "1.0", own: int = 131072, fits: int = 14752) -> Path:
    """Writes the package below `folder`: a model of `own` tokens, of which `fits` fit into memory."""
    server = folder / "vllm" / "entrypoints" / "openai"
    server.mkdir(parents=True)
    for package in (server, server.parent):
        (package / "__init__.py").write_text("")
    (folder / "vllm" / "__init__.py").write_text(f"__version__ = {version!r}\n")
    (server / "api_server.py").write_text(SERVER.format(own=own, fits=fits, engine=str(FAKE_ENGINE)))
    return folder


def write_wheel(folder: Path, version: str, name: str = "vllm") -> Path:
    """Writes a wheel of the package into `folder`, as an index directory of wheels has it."""
    folder.mkdir(exist_ok=True)
    source = write_package(folder / f".source-{version}", version, own=100)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    files = {str(file.relative_to(source)): file.read_text() for file in sorted(source.rglob("*.py"))}
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files)
    with zipfile.ZipFile(path, "w") as wheel:
        for file, content in files.items():
            wheel.writestr(file, content)
    return path
