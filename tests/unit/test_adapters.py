"""LoRA adapters: what is read, what is refused, and what llama.cpp gets."""

from __future__ import annotations

import json
import struct
import threading

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from local_endpoints.nim import adapters
from local_endpoints.nim.adapters import CONFIG_FILE, WEIGHTS_FILE, AdapterError
from tests.unit import tiny_adapters as tiny


@pytest.fixture
def base(tmp_path):
    return tiny.write_base(tmp_path / "base.gguf")


@pytest.fixture
def folder(tmp_path):
    return tiny.write_peft(tmp_path / "mine")


def converted(folder, base, tmp_path) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """Return the fields and the tensors of the converted file."""
    reader = gguf.GGUFReader(adapters.to_gguf(folder, base, tmp_path / "cache"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return fields, {tensor.name: np.array(tensor.data) for tensor in reader.tensors}


class TestConversion:
    def test_the_file_says_what_it_is(self, folder, base, tmp_path):
        fields, tensors = converted(folder, base, tmp_path)
        assert fields["general.type"] == "adapter"
        assert fields["general.architecture"] == "llama"
        assert fields["adapter.type"] == "lora"
        assert fields["adapter.lora.alpha"] == 8
        assert len(tensors) == 2 * len(tiny.LINEAR) * tiny.TINY.layers

    def test_layers_that_keep_their_order_are_unchanged(self, folder, base, tmp_path):
        _, tensors = converted(folder, base, tmp_path)
        given = tiny.tensors()
        for module, name in [("v_proj", "attn_v"), ("o_proj", "attn_output")]:
            prefix = f"base_model.model.{tiny.module_name(1, module)}"
            for side in "AB":
                stored = tensors[f"blk.1.{name}.weight.lora_{side.lower()}"]
                np.testing.assert_array_equal(stored, given[f"{prefix}.lora_{side}.weight"])

    @pytest.mark.parametrize(
        ("module", "name", "heads"), [("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)]
    )
    def test_rotary_rows_interleave_the_halves_of_a_head(
        self, folder, base, tmp_path, module, name, heads
    ):
        _, tensors = converted(folder, base, tmp_path)
        given = tiny.tensors()[f"base_model.model.{tiny.module_name(0, module)}.lora_B.weight"]
        stored = tensors[f"blk.0.{name}.weight.lora_b"]
        size = len(given) // heads
        for head in range(heads):
            for pair in range(size // 2):
                row = head * size + 2 * pair
                np.testing.assert_array_equal(stored[row], given[head * size + pair])
                np.testing.assert_array_equal(
                    stored[row + 1], given[head * size + pair + size // 2]
                )

    def test_other_architectures_keep_the_order(self, folder, tmp_path):
        base = tiny.write_base(tmp_path / "qwen.gguf", architecture="qwen2")
        _, tensors = converted(folder, base, tmp_path)
        given = tiny.tensors()[f"base_model.model.{tiny.module_name(0, 'q_proj')}.lora_B.weight"]
        np.testing.assert_array_equal(tensors["blk.0.attn_q.weight.lora_b"], given)

    def test_the_order_of_rows_can_be_undone(self):
        rows = np.arange(48.0).reshape(16, 3)
        np.testing.assert_array_equal(adapters.unpermute(adapters.permute(rows, 4), 4), rows)

    def test_rank_stabilised_scale_goes_into_b(self, base, tmp_path):
        folder = tiny.write_peft(tmp_path / "stable", use_rslora=True)
        fields, tensors = converted(folder, base, tmp_path)
        given = tiny.tensors()[f"base_model.model.{tiny.module_name(0, 'v_proj')}.lora_B.weight"]
        # llama.cpp multiplies by alpha / rank; alpha / sqrt(rank) is wanted.
        scale = fields["adapter.lora.alpha"] / 4
        np.testing.assert_allclose(
            tensors["blk.0.attn_v.weight.lora_b"] * scale, given * 8 / np.sqrt(4), rtol=1e-6
        )

    def test_a_rank_of_its_own_for_some_layers(self, base, tmp_path):
        weights = {
            **tiny.tensors(modules=("v_proj",)),
            **tiny.tensors(modules=("o_proj",), rank=2),
        }
        folder = tiny.write_peft(tmp_path / "mixed", weights, rank_pattern={"o_proj": 2})
        _, tensors = converted(folder, base, tmp_path)
        assert tensors["blk.0.attn_output.weight.lora_a"].shape == (2, 16)

    def test_half_precision_is_read(self, base, tmp_path):
        halves = {name: array.astype(np.float16) for name, array in tiny.tensors().items()}
        folder = tiny.write_peft(tmp_path / "half", halves)
        _, tensors = converted(folder, base, tmp_path)
        name = f"base_model.model.{tiny.module_name(0, 'v_proj')}.lora_A.weight"
        np.testing.assert_array_equal(
            tensors["blk.0.attn_v.weight.lora_a"], halves[name].astype(np.float32)
        )

    def test_bfloat16_is_read(self, folder, base, tmp_path):
        given = tiny.tensors()
        upper = {name: (a.view(np.uint32) >> 16).astype("<u2") for name, a in given.items()}
        save_file(upper, folder / WEIGHTS_FILE)
        content = (folder / WEIGHTS_FILE).read_bytes()
        (length,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + length].replace(b'"U16"', b'"BF16"')
        (folder / WEIGHTS_FILE).write_bytes(
            struct.pack("<Q", len(header)) + header + content[8 + length :]
        )
        _, tensors = converted(folder, base, tmp_path)
        name = f"base_model.model.{tiny.module_name(0, 'v_proj')}.lora_A.weight"
        expected = (upper[name].astype(np.uint32) << 16).view(np.float32)
        np.testing.assert_array_equal(tensors["blk.0.attn_v.weight.lora_a"], expected)


class TestCache:
    def test_the_same_content_is_the_same_file(self, folder, base, tmp_path):
        cache = tmp_path / "cache"
        first = adapters.to_gguf(folder, base, cache)
        written = first.stat().st_mtime_ns
        folder.rename(tmp_path / "elsewhere")
        assert adapters.to_gguf(tmp_path / "elsewhere", base, cache) == first
        assert first.stat().st_mtime_ns == written
        assert list(cache.iterdir()) == [first]

    def test_other_weights_or_settings_are_another_file(self, folder, base, tmp_path):
        cache = tmp_path / "cache"
        paths = {adapters.to_gguf(folder, base, cache)}
        tiny.write_peft(folder, tiny.tensors(seed=1))
        paths.add(adapters.to_gguf(folder, base, cache))
        tiny.write_peft(folder, tiny.tensors(seed=1), lora_alpha=3)
        paths.add(adapters.to_gguf(folder, base, cache))
        assert len(paths) == 3

    def test_many_at_once(self, folder, base, tmp_path):
        cache = tmp_path / "cache"
        found = []
        threads = [
            threading.Thread(target=lambda: found.append(adapters.to_gguf(folder, base, cache)))
            for _ in range(6)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6 and list(cache.iterdir()) == [found[0]]


class TestRefusals:
    def refused(self, folder, base, tmp_path, **options) -> str:
        with pytest.raises(AdapterError) as caught:
            adapters.to_gguf(folder, base, tmp_path / "cache", **options)
        assert not list(tmp_path.glob("cache/*"))
        sentence = str(caught.value)
        assert "\n" not in sentence and sentence.endswith(".")
        return sentence

    @pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
    def test_a_missing_file(self, folder, base, tmp_path, name):
        (folder / name).unlink()
        assert f"has no {name}" in self.refused(folder, base, tmp_path)

    @pytest.mark.parametrize("keep", [0, -1])
    def test_a_truncated_file(self, folder, base, tmp_path, keep):
        path = folder / WEIGHTS_FILE
        path.write_bytes(path.read_bytes()[:keep])
        assert "incomplete or damaged" in self.refused(folder, base, tmp_path)

    @pytest.mark.parametrize("content", ["{", "[1]"])
    def test_a_broken_configuration(self, folder, base, tmp_path, content):
        (folder / CONFIG_FILE).write_text(content)
        assert CONFIG_FILE in self.refused(folder, base, tmp_path)

    @pytest.mark.parametrize(
        ("setting", "part"),
        [
            ({"peft_type": "IA3"}, "peft_type"),
            ({"use_dora": True}, "uses use_dora"),
            ({"bias": "all"}, "bias"),
            ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
            ({"init_lora_weights": "pissa"}, "init_lora_weights"),
            ({"r": 0}, "r: "),
            ({"r": True}, "r: "),
            ({"r": 64}, "over the limit of 32"),
            ({"r": 8}, "rank 8"),
            ({"lora_alpha": 0}, "lora_alpha"),
            ({"lora_alpha": float("nan")}, "lora_alpha"),
        ],
    )
    def test_a_setting(self, folder, base, tmp_path, setting, part):
        config = json.loads((folder / CONFIG_FILE).read_text())
        (folder / CONFIG_FILE).write_text(json.dumps({**config, **setting}))
        assert part in self.refused(folder, base, tmp_path)

    def test_the_limit_of_the_rank_can_be_set(self, folder, base, tmp_path):
        assert "over the limit of 3" in self.refused(folder, base, tmp_path, max_rank=3)

    def test_weights_that_are_no_numbers(self, folder, base, tmp_path):
        weights = tiny.tensors()
        next(iter(weights.values()))[0, 0] = np.nan
        save_file(weights, folder / WEIGHTS_FILE)
        assert "diverged" in self.refused(folder, base, tmp_path)

    @pytest.mark.parametrize(
        "sizes",
        [
            tiny.Dimensions(layers=2, width=16, heads=4, heads_kv=4, inner=24),
            tiny.Dimensions(layers=3, width=16, heads=4, heads_kv=2, inner=24),
        ],
    )
    def test_another_base_model(self, base, tmp_path, sizes):
        folder = tiny.write_peft(
            tmp_path / "foreign", tiny.tensors(sizes), base_model_name_or_path="them/theirs-1b"
        )
        sentence = self.refused(folder, base, tmp_path)
        assert "trained on them/theirs-1b, and base.gguf is served" in sentence
        assert "a NIM loads adapters only for its own base model" in sentence

    def test_one_half_of_a_pair(self, folder, base, tmp_path):
        weights = tiny.tensors()
        weights.popitem()
        save_file(weights, folder / WEIGHTS_FILE)
        assert "an A without its B" in self.refused(folder, base, tmp_path)

    @pytest.mark.parametrize(
        "key",
        [
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.lm_head.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector",
        ],
    )
    def test_a_tensor_that_is_no_lora_of_a_layer(self, folder, base, tmp_path, key):
        save_file({**tiny.tensors(), key: np.zeros((4, 16), np.float32)}, folder / WEIGHTS_FILE)
        assert f"'{key}'" in self.refused(folder, base, tmp_path)

    def test_the_output_layer(self, folder, base, tmp_path):
        extra = {
            "base_model.model.lm_head.lora_A.weight": np.zeros((4, 16), np.float32),
            "base_model.model.lm_head.lora_B.weight": np.zeros((99, 4), np.float32),
        }
        save_file({**tiny.tensors(), **extra}, folder / WEIGHTS_FILE)
        assert "only attention and MLP layers" in self.refused(folder, base, tmp_path)

    def test_whole_numbers_for_weights(self, folder, base, tmp_path):
        whole = {name: array.astype(np.int32) for name, array in tiny.tensors().items()}
        save_file(whole, folder / WEIGHTS_FILE)
        assert "as I32" in self.refused(folder, base, tmp_path)

    def test_a_base_of_an_unknown_architecture(self, folder, tmp_path):
        base = tiny.write_base(tmp_path / "other.gguf", architecture="gpt2")
        assert "'gpt2'" in self.refused(folder, base, tmp_path)

    def test_a_base_that_is_no_gguf_file(self, folder, tmp_path):
        base = tmp_path / "other.gguf"
        base.write_bytes(b"GGUFnothing else")
        assert "no GGUF file" in self.refused(folder, base, tmp_path)
