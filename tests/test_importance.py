"""Input statistics against plain hooks, and llama.cpp's importance matrix files against gguf and llama.cpp."""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny
import tiny_models
import torch

from edgeslm.errors import ModelError
from edgeslm.models import imatrix
from edgeslm.models.arch import ARCHS
from edgeslm.models.gguf_file import read as read_gguf
from edgeslm.quantize.importance import block_importance, input_statistics, moment_groups

Q, V = "model.layers.1.self_attn.q_proj.weight", "model.layers.1.self_attn.v_proj.weight"
DOWN, HEAD = "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight"


@pytest.fixture(scope="module")
def model():
    return tiny.llama(layers=2)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    return torch.randint(0, 288, (5, 24), generator=torch.Generator().manual_seed(3))


def inputs_of(model, module, ids) -> torch.Tensor:
    seen = []
    hook = module.register_forward_hook(lambda m, args, out: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        model(input_ids=ids)
    hook.remove()
    return torch.cat(seen)


def test_every_matrix_of_the_model_has_its_mean_square(model, ids):
    found = input_statistics(model, ids, rows=2)
    matrices = {name for name, p in model.named_parameters() if p.dim() == 2}
    assert set(found.mean_squares) == matrices and found.tokens == 120 and not found.moments
    x = inputs_of(model, model.model.layers[1].mlp.down_proj, ids)
    assert torch.allclose(found.mean_squares[DOWN], x.square().mean(0), rtol=1e-5)
    assert found.mean_squares[DOWN].shape == (96,) and found.mean_squares[DOWN].dtype == torch.float32
    assert torch.equal(found.mean_squares[Q], found.mean_squares[V])


def test_a_tied_head_stands_under_the_embedding_and_an_untied_embedding_has_no_entry(model, ids):
    final = inputs_of(model, model.lm_head, ids)
    assert torch.allclose(input_statistics(model, ids).mean_squares[HEAD], final.square().mean(0), rtol=1e-5)
    untied = input_statistics(tiny.llama(layers=2, tied=False), ids).mean_squares
    assert HEAD not in untied and "lm_head.weight" in untied


def test_moments_are_the_inputs_products_once_for_each_input(model, ids):
    seen = []
    names = [Q, V, "model.layers.1.self_attn.k_proj.weight", DOWN, HEAD]
    found = input_statistics(
        model, ids, rows=2, moments=names, on_progress=lambda done, total: seen.append((done, total))
    )
    assert set(found.moments) == set(names) and found.moments[Q] is found.moments[V]
    for name, module in ((Q, model.model.layers[1].self_attn.q_proj), (DOWN, model.model.layers[1].mlp.down_proj)):
        x = inputs_of(model, module, ids)
        assert torch.allclose(found.moments[name], x.T @ x / 120, rtol=1e-4, atol=1e-6)
        assert torch.allclose(found.moments[name].diagonal(), found.mean_squares[name], rtol=1e-4)
    assert seen == [(48, 120), (96, 120), (120, 120)]


def test_a_later_reader_alone_may_want_the_moment(model, ids):
    whole = input_statistics(model, ids, moments=[Q])
    late = input_statistics(model, ids, moments=[V])
    assert set(late.moments) == {V} and torch.equal(late.moments[V], whole.moments[Q])


def test_hooks_are_gone_even_after_a_failure(model):
    with pytest.raises(IndexError):
        input_statistics(model, torch.full((1, 4), 10**6))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_groups_of_moments_keep_within_memory():
    groups = moment_groups({"a": 400, "b": 400, "c": 3600, "d": 100, "e": 100}, memory_bytes=1000)
    assert groups == [["a", "b"], ["c"], ["d", "e"]]


def test_block_importance_repeats_a_row_for_any_slice_of_blocks():
    mean = torch.arange(6.0)
    assert torch.equal(block_importance(mean, 2), mean.reshape(3, 2))
    whole = mean.expand(4, 6).reshape(-1, 2)
    assert torch.equal(block_importance(mean, 2, 5, 4), whole[5:9])


@pytest.fixture(scope="module")
def matrix(model, ids) -> imatrix.ImportanceMatrix:
    found = input_statistics(model, ids)
    means = {name: mean.numpy() for name, mean in found.mean_squares.items()}
    return imatrix.from_means(means, found.tokens, ARCHS["llama"].names(model.config.to_dict()), ("learn.txt",), 24)


def test_a_written_matrix_reads_back_the_same(matrix, model, ids, tmp_path):
    imatrix.write(matrix, tmp_path / "m.gguf")
    again = imatrix.read(tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == [tmp_path / "m.gguf"]
    assert (again.datasets, again.chunk_count, again.chunk_size) == (("learn.txt",), 5, 24)
    assert set(again.entries) == set(matrix.entries) and "blk.1.ffn_down.weight" in again.entries
    for name, entry in matrix.entries.items():
        assert np.array_equal(again.entries[name].sums, entry.sums) and entry.sums.shape[0] == 1
        assert np.array_equal(again.entries[name].counts, entry.counts) and entry.counts.tolist() == [120]
    means = again.means(ARCHS["llama"].names(model.config.to_dict()))
    wanted = input_statistics(model, ids).mean_squares
    assert set(means) == set(wanted)
    assert all(np.allclose(means[n], wanted[n].numpy(), rtol=1e-6) for n in wanted)


def test_the_file_is_what_the_gguf_package_expects_of_llama_cpp(matrix, tmp_path):
    imatrix.write(matrix, tmp_path / "m.gguf")
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert "general.architecture" not in reader.fields
    assert reader.fields[gguf.Keys.IMatrix.DATASETS].contents() == ["learn.txt"]
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_COUNT].contents() == 5
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_SIZE].contents() == 24
    assert reader.fields[gguf.Keys.IMatrix.CHUNK_SIZE].types == [gguf.GGUFValueType.UINT32]
    tensors = {t.name: t for t in reader.tensors}
    sums, counts = tensors["blk.0.attn_q.weight.in_sum2"], tensors["blk.0.attn_q.weight.counts"]
    assert sums.tensor_type == counts.tensor_type == gguf.GGMLQuantizationType.F32
    assert sums.shape.tolist() == [64, 1] and counts.shape.tolist() == [1, 1]
    assert np.array_equal(sums.data, matrix.entries["blk.0.attn_q.weight"].sums)


def write_as_ggml(path: Path, tensors: dict[str, np.ndarray], kind: str = "imatrix") -> Path:
    """Flat tensors, as ggml writes [K, 1]."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_key_value("imatrix.datasets", ["a.txt", "b.txt"], gguf.GGUFValueType.ARRAY)
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, data in tensors.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_flat_tensors_and_experts_without_tokens_are_read_as_llama_cpp_does(tmp_path):
    sums, counts = np.array([2, 4, 6, 8], np.float32), np.array([2], np.float32)
    experts = {"e.in_sum2": np.arange(6, dtype=np.float32), "e.counts": np.array([2, 0, 1], np.float32)}
    found = imatrix.read(write_as_ggml(tmp_path / "m", {"w.in_sum2": sums, "w.counts": counts, **experts}))
    assert found.entries["w"].mean().tolist() == [1, 2, 3, 4]
    assert found.entries["e"].mean().tolist() == [0, 0.5, 1, 1, 4, 5]
    assert (found.datasets, found.chunk_count, found.chunk_size) == (("a.txt", "b.txt"), 3, 512)


@pytest.mark.parametrize(
    ("tensors", "kind", "says"),
    [
        ({"w.in_sum2": np.ones(4, np.float32)}, "imatrix", r"'w\.counts' is missing"),
        ({"w.in_sum2": np.ones(4, np.float16), "w.counts": np.ones(1, np.float32)}, "imatrix", "stored as f16"),
        ({"w.in_sum2": np.ones(4, np.float32), "w.counts": np.ones(3, np.float32)}, "imatrix", "4 sums and 3 counts"),
        ({"w.in_sum2": -np.ones(4, np.float32), "w.counts": np.ones(1, np.float32)}, "imatrix", "negative"),
        ({"w": np.ones(4, np.float32)}, "imatrix", "no tensor that ends in"),
        ({"w": np.ones(4, np.float32)}, "model", "is a GGUF model"),
    ],
)
def test_damaged_matrices_are_refused(tensors, kind, says, tmp_path):
    with pytest.raises(ModelError, match=says):
        imatrix.read(write_as_ggml(tmp_path / "m", tensors, kind))


def legacy(entries: dict[str, tuple[int, list[float]]], tail: bytes = b"") -> bytes:
    out = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        out += struct.pack("<i", len(name)) + name.encode()
        out += struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return out + tail


def test_the_legacy_form_is_read_with_and_without_its_tail(tmp_path):
    path = tmp_path / "old.dat"
    path.write_bytes(legacy({"blk.0.attn_q.weight": (4, [4.0, 8.0]), "x": (0, [3.0])}))
    found = imatrix.read(path)
    assert found.entries["blk.0.attn_q.weight"].mean().tolist() == [1, 2] and found.entries["x"].mean().tolist() == [3]
    assert (found.datasets, found.chunk_count, found.chunk_size) == ((), 0, 0)
    path.write_bytes(legacy({"x": (1, [3.0])}, struct.pack("<ii", 7, 5) + b"a.txt"))
    assert (imatrix.read(path).datasets, imatrix.read(path).chunk_count) == (("a.txt",), 7)


def test_a_legacy_file_cut_anywhere_is_refused_or_lacks_only_its_tail(tmp_path):
    path, body = tmp_path / "old.dat", legacy({"name": (2, [1.0, 2.0, 3.0])})
    whole = body + struct.pack("<ii", 7, 5) + b"a.txt"
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        if size in (len(body), len(body) + 4):
            assert list(imatrix.read(path).entries) == ["name"]
        else:
            with pytest.raises(ModelError, match="neither GGUF nor"):
                imatrix.read(path)
    path.write_bytes(legacy({"n": (1, [1.0])}).replace(struct.pack("<ii", 1, 1), struct.pack("<ii", 1, 2**31 - 1)))
    with pytest.raises(ModelError, match="neither GGUF nor"):
        imatrix.read(path)


def test_weights_without_a_gguf_name_and_overflowed_inputs_are_refused():
    one = np.ones(4, np.float32)
    with pytest.raises(ModelError, match="no GGUF name"):
        imatrix.from_means({"unheard.of": one}, 8, {}, ("t",), 8)
    with pytest.raises(ModelError, match="overflow"):
        imatrix.from_means({"a": one * np.inf}, 8, {"a": "b"}, ("t",), 8)


def quantise(source: Path, out: Path, matrix: imatrix.ImportanceMatrix | None) -> bytes:
    """llama.cpp's quantiser, Q4_0 everywhere, with the matrix as it takes it: {name, data, size}, name NULL last."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: python -m edgeslm.runtimes.native")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.pure, params.nthread = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, True, 1
    kept = []
    if matrix is not None:
        kind = llama_cpp.llama_model_imatrix_data
        table = (kind * (len(matrix.entries) + 1))()
        for row, (name, entry) in zip(table, sorted(matrix.entries.items()), strict=False):
            kept.append(np.ascontiguousarray(entry.mean()))
            row.name, row.size = name.encode(), kept[-1].size
            row.data = kept[-1].ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        params.imatrix = table
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params))
    assert code == 0
    return out.read_bytes()


def test_llama_cpps_quantiser_takes_the_matrix_and_minds_it(tmp_path):
    net = tiny_models.model()
    source = tiny_models.write_gguf(net, tmp_path / "model.gguf")
    found = input_statistics(net, torch.tensor([tiny_models.ids(64)]))
    names = ARCHS["llama"].names(net.config.to_dict())
    means = {name: mean.numpy() for name, mean in found.mean_squares.items()}
    imatrix.write(imatrix.from_means(means, found.tokens, names, ("t",), 64), tmp_path / "m.gguf")
    quantise(source, tmp_path / "plain.gguf", None)
    quantise(source, tmp_path / "minded.gguf", imatrix.read(tmp_path / "m.gguf"))
    truth, plain, minded = (read_gguf(tmp_path / f"{n}.gguf") for n in ("model", "plain", "minded"))
    for ours, mean in found.mean_squares.items():
        name = names[ours]

        def error(file, name=name, mean=mean):
            return ((file.load(name) - truth.load(name)).square() * mean).sum()

        assert minded.tensors[name].format == "q4_0"
        assert error(minded) < error(plain)
