"""Prompts with pseudo-words: tokens, splicing, positions, states."""

import logging
import math
from itertools import pairwise
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from promptnet.models.text import (
    PromptTokens,
    WordPlace,
    encode_prompts,
    encode_tokens,
    find_placeholders,
    replace_placeholders,
    tokenize_prompts,
)

WIDTH = 32
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!,.()'"


def build_tokenizer(pad_token: str = "<|endoftext|>", max_length: int = 77) -> CLIPTokenizer:
    """One token a character, so that every text can be encoded; "!" has id 0, as in CLIP."""
    letters = ["!", *(c for c in CHARACTERS if c != "!")]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=max_length, pad_token=pad_token)


def build_tower(num_layers: int = 2, *, projection: bool = False, old_end_id: bool = False) -> CLIPTextModel:
    tokenizer: Any = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        projection_dim=20,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=2 if old_end_id else tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    with torch.random.fork_rng():
        torch.manual_seed(1)
        text_encoder = kind(config).eval().requires_grad_(False)
        for parameter in text_encoder.parameters():  # large enough that every part of the computation shows
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return text_encoder  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


@pytest.fixture(scope="module")
def text_encoder() -> CLIPTextModel:
    return build_tower().double()


def words(length: int, seed: int = 0) -> Tensor:
    return torch.randn(length, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reference_states(text_encoder: CLIPTextModel, embedded: Tensor) -> Tensor:
    """A CLIP text transformer written out: embedded (T, D) to its normed output, by the encoder's weights."""
    weights = text_encoder.state_dict()
    heads, head_width = 4, WIDTH // 4
    length = len(embedded)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def attend(x: Tensor, layer: str) -> Tensor:
        q, k, v = (
            linear(x, f"{layer}.self_attn.{part}_proj").reshape(length, heads, head_width).transpose(0, 1)
            for part in "qkv"
        )
        logits = q @ k.transpose(1, 2) / math.sqrt(head_width)
        logits = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
        mixed = (logits.softmax(-1) @ v).transpose(0, 1).reshape(length, WIDTH)
        return linear(mixed, f"{layer}.self_attn.out_proj")

    hidden = embedded
    for index in range(2):
        layer = f"encoder.layers.{index}"
        hidden = hidden + attend(norm(hidden, f"{layer}.layer_norm1"), layer)
        inner = linear(norm(hidden, f"{layer}.layer_norm2"), f"{layer}.mlp.fc1")
        hidden = hidden + linear(inner * torch.sigmoid(1.702 * inner), f"{layer}.mlp.fc2")
    return norm(hidden, "final_layer_norm")


def reference_embedding(
    text_encoder: CLIPTextModel, tokenizer: Any, parts: list[str | Tensor], positions: str
) -> Tensor:
    """Text and pseudo-words, laid out one vector after another, with the position each should get."""
    tokens, places = text_encoder.embeddings.token_embedding.weight, text_encoder.embeddings.position_embedding.weight
    vectors, old_place = [], 0
    items: list[int | Tensor] = [tokenizer.bos_token_id]
    for part in parts:
        items += tokenizer(part, add_special_tokens=False).input_ids if isinstance(part, str) else [part]
    items.append(tokenizer.eos_token_id)
    for item in items:
        if isinstance(item, int):
            vectors.append(tokens[item] + places[len(vectors) if positions == "natural" else old_place])
        else:
            for word in item:
                vectors.append(word + places[len(vectors)] if positions == "natural" else word)
        old_place += 1
    while len(vectors) < 77:
        vectors.append(tokens[tokenizer.pad_token_id] + places[len(vectors) if positions == "natural" else old_place])
        old_place += 1
    return torch.stack(vectors)


class TestPlaceholders:
    @pytest.mark.parametrize(
        ("prompt", "found"),
        [
            ("a photo of S*", ["S*"]),
            ("S1* and S2*, S1* again", ["S1*", "S2*", "S1*"]),
            ("(S*)'s hat", ["S*"]),
            ("S12*S3*", ["S12*", "S3*"]),
            ("WINDOWS* and s* and S *", []),
            ("", []),
        ],
    )
    def test_are_found_in_order(self, prompt: str, found: list[str]) -> None:
        assert find_placeholders(prompt) == found

    def test_are_replaced_by_words(self) -> None:
        replaced = replace_placeholders("S1* beside S2*, S1* smiling", {"S1*": "a man", "S2*": "a dog"})
        assert replaced == "a man beside a dog, a man smiling"

    def test_replacing_without_a_word_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"S2\*"):
            replace_placeholders("S1* and S2*", {"S1*": "a man"})


class TestTokens:
    @given(st.lists(st.sampled_from(["ab", "a,", "(x)", "it's", "S*", "S1*"]), max_size=8))
    def test_a_placeholder_is_a_word_among_words(self, parts: list[str]) -> None:
        """The same tokens as with a plain word in its place, which then becomes several."""
        tokenizer = build_tokenizer()
        prompt = " ".join(parts)
        counts = {name: {"S*": 1, "S1*": 3}[name] for name in set(find_placeholders(prompt))}
        tokens = tokenize_prompts(tokenizer, [prompt], [counts])
        plain = tokenizer(prompt.replace("S1*", "z").replace("S*", "z")).input_ids
        word = tokenizer("z", add_special_tokens=False).input_ids[0]
        expected, places = [], []
        for token in plain:
            if token == word:
                name = find_placeholders(prompt)[len(places)]
                places.append(WordPlace(name, len(expected), counts[name]))
                expected += [None] * counts[name]
            else:
                expected.append(token)
        found = tokens.input_ids[0].tolist()[: len(expected)]
        assert [f for f, e in zip(found, expected, strict=True) if e is not None] == [e for e in expected if e]
        assert tokens.places == (tuple(places),)
        assert tokens.attention_mask.sum() == len(expected)
        assert all(f != tokenizer.eos_token_id for f, e in zip(found, expected, strict=True) if e is None)

    def test_published_positions_count_a_placeholder_once(self, tokenizer: CLIPTokenizer) -> None:
        tokens = tokenize_prompts(tokenizer, ["a S* b S1* c"], [{"S*": 3, "S1*": 2}], padding="longest")
        #                                            start a  S*       b  S1*   c  end
        assert tokens.published_positions.tolist() == [[0, 1, 2, 2, 2, 3, 4, 4, 5, 6]]

    def test_longest_padding_is_no_longer_than_needed(self, tokenizer: CLIPTokenizer) -> None:
        tokens = tokenize_prompts(tokenizer, ["a S*", "abc def"], [{"S*": 2}, {}], padding="longest")
        assert tokens.input_ids.shape == (2, 8)
        assert tokens.attention_mask.tolist() == [[1] * 5 + [0] * 3, [1] * 8]

    def test_cut_text_is_warned_about_and_keeps_its_end_token(
        self, tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="promptnet.models.prompt_tokens"):
            tokens = tokenize_prompts(tokenizer, ["S*" + " a" * 72 + " b"], [{"S*": 3}])
        assert "b" in caplog.text
        assert tokens.input_ids[0, -1] == tokenizer.eos_token_id
        assert tokens.input_ids.shape == (1, 77)

    def test_text_that_just_fits_is_not_warned_about(
        self, tokenizer: CLIPTokenizer, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, logger="promptnet.models.prompt_tokens"):
            tokenize_prompts(tokenizer, ["S*" + " a" * 72], [{"S*": 3}])
        assert not caplog.records

    @pytest.mark.parametrize("before", [73, 74, 200])
    def test_cutting_pseudo_words_is_refused(self, tokenizer: CLIPTokenizer, before: int) -> None:
        """73 tokens leave room for two of three pseudo-words; 72 would leave room for all."""
        tokenize_prompts(tokenizer, ["a " * 72 + "S*"], [{"S*": 3}])
        with pytest.raises(ValueError, match=r"S\* would be cut off"):
            tokenize_prompts(tokenizer, ["a " * before + "S*"], [{"S*": 3}])

    def test_missing_and_unused_pseudo_words_are_named(self, tokenizer: CLIPTokenizer) -> None:
        with pytest.raises(ValueError, match=r"mentions S2\*"):
            tokenize_prompts(tokenizer, ["S1* and S2*"], [{"S1*": 1}])
        with pytest.raises(ValueError, match=r"mentions S\*"):
            tokenize_prompts(tokenizer, ["S*"])
        with pytest.raises(ValueError, match=r"given for S2\*, but no prompt"):
            tokenize_prompts(tokenizer, ["S1*", "a"], [{"S1*": 1, "S2*": 1}, {}])
        tokenize_prompts(tokenizer, ["S*", "a"], [{"S*": 1}, {"S*": 1}])  # another prompt uses it
        with pytest.raises(ValueError, match="2 prompts"):
            tokenize_prompts(tokenizer, ["S*", "a"], [{"S*": 1}])

    def test_a_tokenizer_without_length_is_refused(self) -> None:
        endless = build_tokenizer(max_length=int(1e30))
        with pytest.raises(ValueError, match="max_length"):
            tokenize_prompts(endless, ["a"])
        assert tokenize_prompts(endless, ["a"], max_length=9).input_ids.shape == (1, 9)


class TestWithoutPlaceholders:
    PROMPTS = ("", "a photo of a person, smiling!", "long " * 40)

    @pytest.mark.parametrize("pad_token", ["!", "<|endoftext|>"])
    def test_equals_stable_diffusion_bit_for_bit(self, pad_token: str) -> None:
        tokenizer, text_encoder = build_tokenizer(pad_token), build_tower()
        pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=text_encoder, unet=None)
        expected, _ = StableDiffusionPipeline.encode_prompt(
            pipeline,  # pyright: ignore[reportArgumentType]
            list(self.PROMPTS),
            torch.device("cpu"),
            1,
            False,
        )
        found = encode_prompts(tokenizer, text_encoder, self.PROMPTS)
        assert torch.equal(found.hidden_states, expected)
        assert found.pooled is None

    def test_equals_stable_diffusion_xl_bit_for_bit(self, tokenizer: CLIPTokenizer) -> None:
        text_encoders = build_tower(), build_tower(3, projection=True)
        pipeline = SimpleNamespace(
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            text_encoder=text_encoders[0],
            text_encoder_2=text_encoders[1],
            unet=None,
            _execution_device=torch.device("cpu"),
            config=SimpleNamespace(force_zeros_for_empty_prompt=True),
        )
        expected, _, expected_pooled, _ = StableDiffusionXLPipeline.encode_prompt(
            pipeline,  # pyright: ignore[reportArgumentType]
            list(self.PROMPTS),  # pyright: ignore[reportArgumentType]
            do_classifier_free_guidance=False,
        )
        first, second = (
            encode_prompts(tokenizer, text_encoder, self.PROMPTS, layer="penultimate", final_norm=False)
            for text_encoder in text_encoders
        )
        assert torch.equal(torch.cat([first.hidden_states, second.hidden_states], dim=-1), expected)
        assert second.pooled is not None
        assert torch.equal(second.pooled, expected_pooled)

    def test_a_tower_with_attention_mask_gets_it(self, tokenizer: CLIPTokenizer) -> None:
        text_encoder = build_tower()
        text_encoder.config.use_attention_mask = True
        pipeline = SimpleNamespace(tokenizer=tokenizer, text_encoder=text_encoder, unet=None)
        expected, _ = StableDiffusionPipeline.encode_prompt(
            pipeline,  # pyright: ignore[reportArgumentType]
            ["a photo"],
            torch.device("cpu"),
            1,
            False,
        )
        assert torch.equal(encode_prompts(tokenizer, text_encoder, ["a photo"]).hidden_states, expected)

    def test_a_short_tower_limits_the_length(self) -> None:
        text_encoder = build_tower()
        assert encode_prompts(build_tokenizer(max_length=20), text_encoder, ["a"]).hidden_states.shape == (1, 20, WIDTH)
        assert encode_prompts(build_tokenizer(max_length=512), text_encoder, ["a"]).hidden_states.shape == (
            1,
            77,
            WIDTH,
        )


class TestSplicing:
    @pytest.mark.parametrize("positions", ["natural", "published"])
    @pytest.mark.parametrize("pad_token", ["!", "<|endoftext|>"])
    def test_matches_the_computation_written_out(
        self, text_encoder: CLIPTextModel, positions: str, pad_token: str
    ) -> None:
        tokenizer = build_tokenizer(pad_token)
        one, two = words(1), words(3, seed=1)
        states = encode_prompts(
            tokenizer,
            text_encoder,
            ["a photo of S*, smiling", "S1* and S* and S1*", "a plain text"],
            [{"S*": one}, {"S*": one, "S1*": two}, {}],
            positions=positions,  # pyright: ignore[reportArgumentType]
        )
        layouts: list[list[str | Tensor]] = [
            ["a photo of", one, ", smiling"],
            [two, "and", one, "and", two],
            ["a plain text"],
        ]
        for row, parts in enumerate(layouts):
            expected = reference_states(text_encoder, reference_embedding(text_encoder, tokenizer, parts, positions))
            torch.testing.assert_close(states.hidden_states[row], expected, rtol=0, atol=1e-11)

    def test_positions_differ_where_they_should(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        def encode(positions: str) -> Tensor:
            states = encode_prompts(tokenizer, text_encoder, ["a S* b"], [{"S*": words(2)}], positions=positions)  # pyright: ignore[reportArgumentType]
            return states.hidden_states[0]

        natural, published = encode("natural"), encode("published")
        assert torch.equal(natural[:2], published[:2])
        assert not torch.isclose(natural[2:], published[2:]).all(dim=-1).any()

    def test_the_words_own_embeddings_give_the_plain_prompt(
        self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
    ) -> None:
        """A pseudo-word that equals a word's embedding is that word."""
        word = text_encoder.embeddings.token_embedding.weight[tokenizer("z", add_special_tokens=False).input_ids]
        with_word = encode_prompts(tokenizer, text_encoder, ["a z b"]).hidden_states
        with_pseudo_word = encode_prompts(tokenizer, text_encoder, ["a S* b"], [{"S*": word}]).hidden_states
        torch.testing.assert_close(with_pseudo_word, with_word, rtol=0, atol=1e-13)

    def test_the_causal_mask_holds(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        first, second = (
            encode_prompts(tokenizer, text_encoder, ["abc S* d"], [{"S*": words(1, seed)}]).hidden_states[0]
            for seed in (0, 1)
        )
        assert torch.equal(first[:4], second[:4])
        assert not torch.isclose(first[4:], second[4:]).all(dim=-1).any()

    @pytest.mark.parametrize("old_end_id", [False, True])
    def test_pooled_state_is_that_of_the_moved_end_token(self, tokenizer: CLIPTokenizer, old_end_id: bool) -> None:
        text_encoder = build_tower(projection=True, old_end_id=old_end_id).double()
        states = encode_prompts(tokenizer, text_encoder, ["a S* b", "c"], [{"S*": words(4)}, {}])
        assert states.pooled is not None
        ends = torch.stack([states.hidden_states[0, 7], states.hidden_states[1, 2]])
        torch.testing.assert_close(
            states.pooled, text_encoder.get_submodule("text_projection")(ends), rtol=0, atol=1e-12
        )

    def test_a_complete_tower_before_its_last_layer_is_the_cut_one(self, tokenizer: CLIPTokenizer) -> None:
        """Stable Diffusion 2 ships its encoder without the last layer; both ways to the same states agree."""
        complete, cut = build_tower(3), build_tower(2)
        cut.load_state_dict(complete.state_dict(), strict=False)
        pseudo_words = [{"S*": words(2).float()}]
        penultimate = encode_prompts(tokenizer, complete, ["a S* b"], pseudo_words, layer="penultimate")
        last = encode_prompts(tokenizer, cut, ["a S* b"], pseudo_words)
        assert torch.equal(penultimate.hidden_states, last.hidden_states)

    def test_a_batch_is_its_rows(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        prompts = ["a S* b", "S* c d e"]
        pseudo_words = [{"S*": words(1)}, {"S*": words(3, seed=1)}]
        together = encode_prompts(tokenizer, text_encoder, prompts, pseudo_words).hidden_states
        for row in range(2):
            alone = encode_prompts(tokenizer, text_encoder, [prompts[row]], [pseudo_words[row]]).hidden_states
            torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-12)

    def test_tokens_are_reusable_and_words_checked_again(
        self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
    ) -> None:
        tokens: PromptTokens = tokenize_prompts(tokenizer, ["a S*"], [{"S*": 2}])
        for seed in range(2):
            expected = encode_prompts(tokenizer, text_encoder, ["a S*"], [{"S*": words(2, seed)}])
            found = encode_tokens(text_encoder, tokens, [{"S*": words(2, seed)}])
            assert torch.equal(found.hidden_states, expected.hidden_states)
        with pytest.raises(ValueError, match="2 pseudo-words, but has 3"):
            encode_tokens(text_encoder, tokens, [{"S*": words(3)}])
        with pytest.raises(ValueError, match=r"given for S\*"):
            encode_tokens(text_encoder, tokens)
        with pytest.raises(ValueError, match="1 prompts"):
            encode_tokens(text_encoder, tokens, [{"S*": words(2)}] * 2)

    def test_wrong_shapes_and_settings_are_refused(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        for wrong in (torch.zeros(2, WIDTH + 1), torch.zeros(WIDTH), torch.zeros(0, WIDTH)):
            with pytest.raises(ValueError, match="another base model"):
                encode_prompts(tokenizer, text_encoder, ["S*"], [{"S*": wrong}])
        with pytest.raises(ValueError, match="positions='sideways'"):
            encode_prompts(tokenizer, text_encoder, ["a"], positions="sideways")  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match="layer='first'"):
            encode_prompts(tokenizer, text_encoder, ["a"], layer="first")  # pyright: ignore[reportArgumentType]


class TestGamma:
    def test_scales_the_first_pseudo_word_of_each_occurrence(
        self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel
    ) -> None:
        arguments = tokenizer, text_encoder, ["a S* b S*", "c"], [{"S*": words(2)}, {}]
        plain = encode_prompts(*arguments)
        scaled = encode_prompts(*arguments, pseudo_word_scale=0.8)
        factors = torch.ones(2, 77, 1, dtype=torch.float64)
        factors[0, [2, 5]] = 0.8
        assert torch.equal(scaled.hidden_states, plain.hidden_states * factors)
        assert torch.equal(plain.scaled(0.8).hidden_states, scaled.hidden_states)
        assert plain.scaled(1.0) is plain

    def test_has_a_gradient(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        vectors = words(1).requires_grad_()
        encode_prompts(
            tokenizer, text_encoder, ["S*"], [{"S*": vectors}], pseudo_word_scale=0.5
        ).hidden_states.sum().backward()
        assert vectors.grad is not None
        assert vectors.grad.abs().sum() > 0


class TestGradients:
    def test_are_right(self, tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
        tokens = tokenize_prompts(tokenizer, ["a S* b", "S*"], [{"S*": 2}] * 2, padding="longest")
        weights = torch.randn(2, 6, WIDTH, dtype=torch.float64)

        def loss(*vectors: Tensor) -> Tensor:
            states = encode_tokens(text_encoder, tokens, [{"S*": vector} for vector in vectors])
            return (states.hidden_states * weights).sum()

        assert torch.autograd.gradcheck(loss, [words(2, seed).requires_grad_() for seed in (0, 1)], fast_mode=True)

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_survive_gradient_checkpointing(self, tokenizer: CLIPTokenizer, use_reentrant: bool) -> None:
        def gradient(text_encoder: CLIPTextModel) -> Tensor:
            vectors = words(2).requires_grad_()
            states = encode_prompts(tokenizer, text_encoder, ["a S* b"], [{"S*": vectors}]).hidden_states
            states.square().sum().backward()
            assert vectors.grad is not None
            return vectors.grad

        plain = build_tower().double().train()
        checkpointed = build_tower().double().train()
        checkpointed.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        torch.testing.assert_close(gradient(checkpointed), gradient(plain), rtol=1e-12, atol=1e-12)


class TestTheTowerIsLeftAlone:
    def test_no_word_stays_behind(self, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        text_encoder = build_tower()
        arguments = tokenizer, text_encoder, ["a S*"], [{"S*": words(1).float()}]
        plain = encode_prompts(tokenizer, text_encoder, ["a cat"]).hidden_states
        encode_prompts(*arguments)
        assert torch.equal(encode_prompts(tokenizer, text_encoder, ["a cat"]).hidden_states, plain)

        def broken(*_args: object, **_kwargs: object) -> None:
            raise RuntimeError("no memory")

        with monkeypatch.context() as patch:
            patch.setattr(text_encoder.encoder, "forward", broken)
            with pytest.raises(RuntimeError, match="no memory"):
                encode_prompts(*arguments)
        assert torch.equal(encode_prompts(tokenizer, text_encoder, ["a cat"]).hidden_states, plain)
        assert len(text_encoder.embeddings._forward_hooks) == 1, "one slot, whatever came"

    def test_another_threads_prompts_are_not_touched(
        self, tokenizer: CLIPTokenizer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """While one thread is inside the encoder with its pseudo-words, another encodes a plain prompt in it."""
        text_encoder = build_tower()
        expected = encode_prompts(tokenizer, text_encoder, ["abc"]).hidden_states
        found = []
        encode, original = encode_prompts, text_encoder.embeddings.forward

        def meanwhile(*args: object, **kwargs: object) -> Tensor:
            monkeypatch.setattr(text_encoder.embeddings, "forward", original)
            thread = Thread(target=lambda: found.append(encode(tokenizer, text_encoder, ["abc"]).hidden_states))
            thread.start()
            thread.join()
            return original(*args, **kwargs)  # pyright: ignore[reportArgumentType]

        monkeypatch.setattr(text_encoder.embeddings, "forward", meanwhile)
        encode_prompts(tokenizer, text_encoder, ["S*"], [{"S*": words(1).float()}])
        assert torch.equal(found[0], expected)

    def test_adapters_on_the_tower_act(self, tokenizer: CLIPTokenizer) -> None:
        text_encoder = build_tower()
        arguments = tokenizer, ["a S* b"], [{"S*": words(2).float()}]

        def encode(model: object) -> Tensor:
            return encode_prompts(arguments[0], model, *arguments[1:]).hidden_states  # pyright: ignore[reportArgumentType]

        before = encode(text_encoder)
        adapted = get_peft_model(text_encoder, LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False))
        within = encode(adapted)
        merged = encode(adapted.merge_and_unload())  # pyright: ignore[reportCallIssue]
        torch.testing.assert_close(within, merged, rtol=0, atol=1e-5)
        assert (within - before).abs().max() > 1e-3

    def test_half_precision_towers_take_float_words(self, tokenizer: CLIPTokenizer) -> None:
        states = encode_prompts(tokenizer, build_tower().bfloat16(), ["a S*"], [{"S*": words(1).float()}])
        assert states.hidden_states.dtype == torch.bfloat16

    def test_other_models_are_refused(self, tokenizer: CLIPTokenizer) -> None:
        with pytest.raises(ValueError, match="Linear has no CLIP text embeddings"):
            encode_prompts(tokenizer, torch.nn.Linear(1, 1), ["a"])  # pyright: ignore[reportArgumentType]


def test_places_of_a_prompt_do_not_overlap(tokenizer: CLIPTokenizer) -> None:
    tokens = tokenize_prompts(tokenizer, ["S*S1* a S*"], [{"S*": 2, "S1*": 4}])
    assert all(a.start + a.length <= b.start for a, b in pairwise(tokens.places[0]))
    assert [place.start for place in tokens.places[0]] == [1, 3, 8]
