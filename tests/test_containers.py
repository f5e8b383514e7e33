"""Every grid in every container: what is promised, what the operators really compute, and what must be refused.

Oracles: onnxruntime's own block lookup (it gives decoded rows) and product, torch with the decoded weights, llama.cpp.
A graph of one lookup and one head stands for a model where the format alone matters; whole models mix all formats.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import test_export
import torch
from onnx import TensorProto, helper
from test_export import EMBEDDING, HEAD, IDS, LLAMA_CPP, ONNXRUNTIME, divergence, program

from edgeslm.artifact import Artifact
from edgeslm.errors import ExportError
from edgeslm.export import EXPORTERS, REFUSES, onnx_grids, table
from edgeslm.export import onnx as onnx_export
from edgeslm.export.onnx_grids import Box
from edgeslm.export.onnx_weights import DataFile, Filler
from edgeslm.export.verify import verify
from edgeslm.export.verify_ggml import decode as decode_ggml
from edgeslm.formats import FORMATS
from edgeslm.models import gguf_file
from edgeslm.models.arch import ARCHS
from edgeslm.quantize.frozen import Frozen, FrozenTensor

ROWS, WIDTH = 24, 1024
BLOCK_FORMATS = [n for n, f in FORMATS.items() if f.block > 1]
TRAINED = [n for n in BLOCK_FORMATS if FORMATS[n].encode is not None]
IN_ONNX = [n for n in TRAINED if onnx_export.holds(n) != "refused"]
IN_GGUF = [n for n in TRAINED if FORMATS[n].ggml_type is not None]
IN_WIDER_CODES = {"q5_0", "q3_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4", "q1_0"}
GGML = [n for n in BLOCK_FORMATS if FORMATS[n].ggml_type is not None]
tokenizer = test_export.tokenizer  # a fixture


def quantised(form: str, shape: tuple[int, int], seed: int = 0) -> FrozenTensor:
    grid = FORMATS[form]
    w = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    blocks = grid.to_blocks(w * torch.linspace(0.01, 0.3, shape[0])[:, None] + 0.02)
    scales = grid.fit(blocks)
    return FrozenTensor(form, shape, grid.encode(blocks, scales), scales)


def lookup_and_head(form: str, folder: Path, level: int) -> tuple[Artifact, Frozen]:
    """ids -> rows of the embedding -> logits of the tied head, filled as a real export is."""
    frozen = Frozen("llama", {}, {EMBEDDING: quantised(form, (ROWS, WIDTH))}, folder, "small", {})
    graph = helper.make_graph(
        [
            helper.make_node("Gather", [EMBEDDING, "ids"], ["rows"], name="/model/embed_tokens/Gather"),
            helper.make_node("MatMul", ["rows", "lm_head.MatMul.weight"], ["logits"], name="/lm_head/MatMul"),
        ],
        "small",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, None])],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("rows", "logits")],
    )
    for name, dims in ((EMBEDDING, (ROWS, WIDTH)), ("lm_head.MatMul.weight", (WIDTH, ROWS))):
        hole = TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
        graph.initializer.append(hole)
    with (folder / "model.onnx.data").open("wb") as file:
        data = DataFile(file, "model.onnx.data")
        Filler(frozen, data, level).fill(graph)
    domains = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=domains)
    model.ir_version = 10
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    sizes = (data.weight_bytes, data.weight_bytes, frozen.parameters)
    return Artifact("small", folder, "onnx", "", *sizes, form), frozen


def run(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    rows, logits = session.run(["rows", "logits"], {"ids": np.arange(ROWS)[None]})
    return rows[0], logits[0]


def stored(folder: Path) -> dict[str, tuple[int, int]]:
    """{initializer: (offset, length)} in the data file."""
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    places = {t.name: {e.key: e.value for e in t.external_data} for t in model.graph.initializer}
    return {n: (int(e["offset"]), int(e["length"])) for n, e in places.items() if e}


def test_lists_are_what_they_should_be():
    assert set(TRAINED) >= {"q4_0", "n2_b16", "n8a_b256"} and len(IN_ONNX) >= 34
    assert {"n4_b32", "q4_0"} <= set(IN_ONNX) and not {"q4_1", "q5_1"} & set(IN_ONNX)
    assert not [n for n in IN_GGUF if REFUSES["gguf"](n)] and len(IN_GGUF) == len(TRAINED) - 30


@pytest.mark.parametrize("form", IN_ONNX)
def test_onnxruntime_computes_with_the_decoded_weights(form: str, tmp_path: Path) -> None:
    """Rows of the lookup are bitwise `decode`; the head's product at accuracy level 0 is torch's in float32."""
    artifact, frozen = lookup_and_head(form, tmp_path, 0)
    weights = frozen.tensors[EMBEDDING].decode()
    rows, logits = run(tmp_path)
    assert np.array_equal(rows.view(np.int32), weights.numpy().view(np.int32))
    wanted = (weights @ weights.T).numpy()
    assert np.abs(logits - wanted).max() < 2e-6 * np.abs(wanted).max() * WIDTH**0.5
    found = verify(artifact, frozen)
    assert (found["exact"], found["planned_exact"], found["first_mismatch"]) == (1, 1, None)


@pytest.mark.parametrize("form", [n for n in IN_ONNX if n in ("q4_0", "q8_0", "q1_0", "n2_b32", "n4a_b16", "n8a_b128")])
def test_int8_activations_change_the_product_and_not_the_weights(form: str, tmp_path: Path) -> None:
    artifact, frozen = lookup_and_head(form, tmp_path, 4)
    weights = frozen.tensors[EMBEDDING].decode()
    rows, logits = run(tmp_path)
    wanted = (weights @ weights.T).numpy()
    assert np.array_equal(rows, weights.numpy())
    least = -1.0 if form == "q1_0" else 1e-6  # inputs of plus and minus one scale lose nothing in int8
    assert least < np.abs(logits - wanted).max() / np.abs(wanted).max() < 0.03
    assert verify(artifact, frozen)["first_mismatch"] is None


@pytest.mark.parametrize("form", IN_ONNX)
def test_onnx_takes_the_bytes_that_are_promised(form: str, tmp_path: Path) -> None:
    artifact, frozen = lookup_and_head(form, tmp_path, 0)
    held = onnx_grids.need_box(form)
    apart = frozen.parameters // held.block if held.zeros != "middle" else 0  # the lookup's own zero points
    assert artifact.weight_bytes - apart == onnx_export.stored_bits(form) * frozen.parameters / 8
    assert onnx_export.holds(form) == ("larger" if form in IN_WIDER_CODES else "exact")


@pytest.mark.parametrize("form", IN_ONNX)
def test_one_changed_byte_of_any_part_is_found_in_onnx(form: str, tmp_path: Path) -> None:
    artifact, frozen = lookup_and_head(form, tmp_path, 0)
    places, file = stored(tmp_path), tmp_path / "model.onnx.data"
    parts = {name.removeprefix(f"{EMBEDDING}.") for name in places}
    zeros = set() if onnx_grids.need_box(form).zeros == "middle" else {"zeros", "zeros_apart"}
    assert parts == {"codes", "scales"} | zeros
    for offset, length in places.values():
        data = bytearray(file.read_bytes())
        data[offset + length // 2] ^= 1
        file.write_bytes(data)
        assert verify(artifact, frozen)["first_mismatch"].startswith(f"{EMBEDDING}: row ")
        data[offset + length // 2] ^= 1
        file.write_bytes(data)
    assert verify(artifact, frozen)["first_mismatch"] is None


@pytest.mark.parametrize("form", GGML)
def test_the_verifier_decodes_every_ggml_type_as_the_formats_do(form: str) -> None:
    """Random bytes: two decoders that share nothing. NaN payloads are not compared."""
    grid = FORMATS[form]
    raw = np.random.default_rng(7).integers(0, 256, (8, 4 * grid.bytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        theirs = decode_ggml(raw, grid.ggml_type)
    ours = grid.dequantize(torch.from_numpy(raw), theirs.shape).numpy()
    nan = np.isnan(ours)
    assert (nan == np.isnan(theirs)).all() and (ours.view(np.int32)[~nan] == theirs.view(np.int32)[~nan]).all()


@pytest.mark.parametrize("form", [n for n in TRAINED if n not in IN_ONNX])
def test_what_onnx_cannot_hold_is_refused_with_the_reason(form: str) -> None:
    assert f"cannot hold {form} exactly: " in REFUSES["onnx"](form) and "gguf" in REFUSES["onnx"](form)
    assert isinstance(onnx_grids.box(form), str) and onnx_export.stored_bits(form) is None


@pytest.mark.parametrize("form", [n for n in TRAINED if n not in IN_GGUF])
def test_what_gguf_cannot_hold_is_refused_with_the_reason(form: str) -> None:
    assert f"the numbers of {form}" in REFUSES["gguf"](form) and "onnx" in REFUSES["gguf"](form)


def test_boxes_are_the_ones_worked_out_by_hand():
    known = {
        "q4_0": Box(4, 32, 8, "middle", 4),
        "q5_0": Box(8, 32, 128, "middle", 5),
        "q3_k": Box(4, 16, 8, "middle", 3),
        "q6_k": Box(8, 16, 128, "middle", 6),
        "tq1_0": Box(2, 256, 2, "middle", 2),
        "tq2_0": Box(2, 256, 1, "constant", 2),
        "q2_0": Box(2, 64, 1, "constant", 2),
        "q1_0": Box(2, 128, 2, "middle", 1),
        "iq4_nl": Box(8, 32, 128, "middle", 4),
        "nvfp4": Box(8, 16, 128, "middle", 4),
        "n4a_b64": Box(4, 64, 0, "own", 4),
    }
    assert {n: onnx_grids.box(n) for n in known if n in TRAINED} == {n: b for n, b in known.items() if n in TRAINED}
    for form in ("q4_1", "q4_k", "q2_k"):
        assert form not in TRAINED or "minimum" in onnx_grids.box(form)


def mixed(container: str, tokenizer: Path) -> tuple[Frozen, torch.nn.Module]:
    """A model of hidden size 256 in which every matrix has another format, each of the container's formats in turn."""
    able = IN_GGUF if container == "gguf" else IN_ONNX
    model = test_export.tiny("llama", tied=container == "gguf", hidden=256, layers=-(-len(able) // 7), width=512)
    tensors, turn = {}, 0
    for name, parameter in model.named_parameters():
        form = "f32" if parameter.dim() == 1 else able[turn % len(able)]
        turn += parameter.dim() > 1
        grid = FORMATS[form]
        blocks = grid.to_blocks(parameter.detach())
        scales = grid.fit(blocks)
        tensors[name] = FrozenTensor(form, tuple(parameter.shape), grid.encode(blocks, scales), scales)
    assert {t.format for t in tensors.values()} == {"f32", *able}
    model.load_state_dict({n: t.decode() for n, t in tensors.items()}, strict=False)
    model.tie_weights()
    return Frozen("llama", model.config.to_dict(), tensors, tokenizer, "mixed", {}), model


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def whole(request: pytest.FixtureRequest, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory):
    frozen, model = mixed(request.param, tokenizer)
    out = tmp_path_factory.mktemp("mixed") / ("m.gguf" if request.param == "gguf" else "m-onnx")
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0].numpy()
    return EXPORTERS[request.param](frozen, out), frozen, logits


def test_a_whole_model_of_all_formats_is_exact_and_runs(whole, tmp_path: Path) -> None:
    artifact, frozen, wanted = whole
    total, planned = len(frozen.tensors), sum(len(t.shape) > 1 for t in frozen.tensors.values())
    found = verify(artifact, frozen)
    assert found["first_mismatch"] is None
    assert (found["exact"], found["planned"], found["planned_exact"]) == (total, planned, planned)
    if artifact.format == "onnx":
        program(ONNXRUNTIME, str(artifact.path), json.dumps(IDS), str(tmp_path / "logits.npz"))
        assert np.abs(np.load(tmp_path / "logits.npz")["plain"] - wanted).max() < 1e-3 * np.abs(wanted).max()
    else:  # llama.cpp rounds activations to 8 bits, in blocks of 256 for most of these types
        done = program(LLAMA_CPP, str(artifact.path), json.dumps(IDS), str(tmp_path / "logits.npy"))
        assert json.loads(done.stdout.splitlines()[-1]) == {"status": 0, "complaints": []}
        assert divergence(wanted, np.load(tmp_path / "logits.npy")) < 0.02


def test_one_changed_byte_of_any_tensor_is_found_in_gguf(whole, tmp_path: Path) -> None:
    artifact, frozen, _ = whole
    if artifact.format == "onnx":
        pytest.skip("done format by format above")
    copy, whole_file = tmp_path / "m.gguf", artifact.path.read_bytes()
    changed = []
    for info in gguf_file.read(artifact.path).tensors.values():
        if len(info.shape) > 1:
            data = bytearray(whole_file)
            data[info.offset + info.nbytes // 2 + 5] ^= 0x55  # a byte of codes or of scales, by the format
            copy.write_bytes(data)
            found = verify(replace(artifact, path=copy), frozen)
            assert found["exact"] == found["tensors"] - 1, info
            changed.append(found["first_mismatch"].partition(":")[0])
    assert len(set(changed)) == sum(len(t.shape) > 1 for t in frozen.tensors.values())


def test_a_gguf_of_any_type_can_teach_again(whole) -> None:
    """Our reader decodes every tensor of the file to the bits that were trained."""
    artifact, frozen, _ = whole
    if artifact.format == "onnx":
        pytest.skip("no teacher is read from ONNX")
    file, arch = gguf_file.read(artifact.path), ARCHS["llama"]
    for name, stored_name in arch.names(frozen.config).items():
        tensor, order = frozen.tensors[name], arch.row_order(name, frozen.config)
        wanted = tensor.decode() if order is None else tensor.decode()[order]
        assert file.tensors[stored_name].format == tensor.format.removesuffix("_portable")
        assert torch.equal(file.load(stored_name).view(torch.int32), wanted.view(torch.int32)), name


def test_a_model_of_onnx_grids_is_no_gguf_and_says_so(whole, tmp_path: Path) -> None:
    artifact, frozen, _ = whole
    other = "gguf" if artifact.format == "onnx" else "onnx"
    with pytest.raises(ExportError, match=r"\.weight: .*(ggml has no type|cannot hold)"):
        EXPORTERS[other](frozen, tmp_path / "no")
    assert list(tmp_path.iterdir()) == []
    assert HEAD in frozen.tensors or artifact.format == "gguf"


def test_the_table_says_what_every_format_costs_where():
    rows = {row["name"]: row for row in table.rows()}
    assert list(rows) == list(FORMATS)
    for name, row in rows.items():
        assert row["gguf"] in ("exact", "read", "refused") and row["onnx"] in ("exact", "larger", "refused")
        assert (row["onnx"] == "refused") == (row["onnx_why"] is not None) == (row["onnx_bits"] is None)
        assert (row["gguf"] == "refused") == (FORMATS[name].ggml_type is None) and row["source"]
    assert rows["n4_b32"]["onnx_bits"] == 5.0 and rows["n4_b32"]["gguf"] == "refused"
    wide, narrow = table.text(table.rows(), 400), table.text(table.rows(), 80)
    assert len(wide) == len(rows) + 4 and "minimum" in next(line for line in wide if line.startswith("q4_1"))
    assert len(narrow) > 3 * len(rows) and max(map(len, narrow[:-2])) <= 100
