"""The text tower as a function of token vectors: open_clip's own sums, frozen, under torch.func."""

from dataclasses import replace

import open_clip
import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import TextTransformer
from torch.func import jacrev, vjp, vmap

from raffect.config import EncoderConfig
from raffect.encoders.text_tower import LearntPrompts, TextTower
from raffect.encoders.tower import build_model
from raffect.encoders.weights import resolve
from raffect.errors import RaffectError

CPU = torch.device("cpu")
TEXTS = ["face with lips parted", "a", "brows", ""]


@pytest.fixture(scope="module", params=["embedded", "gelu", "quickgelu"])
def clip(request, tiny_vit):
    """A CLIP model, and its tower as ours."""
    config = {
        "embedded": EncoderConfig(model="raffect-faces", weights="embedded"),
        "gelu": replace(tiny_vit, model="tiny-vit"),
        "quickgelu": tiny_vit,
    }[request.param]
    model = build_model(resolve(config)).eval()
    return model, make_tower(model, config.model)


def make_tower(model, name, dtype=torch.float32):
    return TextTower(model, open_clip.get_tokenizer(name), name, CPU, dtype)


@torch.no_grad()
def reference(model, tower, texts):
    return model.encode_text(open_clip.get_tokenizer(tower.name)(texts))


def test_vectors_of_ordinary_texts_are_encode_texts(clip):
    model, tower = clip
    expected = reference(model, tower, TEXTS)
    # All as long as the context, and as long as the longest alone
    tokens = open_clip.get_tokenizer(tower.name)(TEXTS)
    x = model.token_embedding(tokens)
    for length in (tower.context_length, 1 + int(tokens.argmax(1).max())):
        found = tower(x[:, :length], tokens.argmax(1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert tower.dim == expected.shape[1]
    # Words behind tokens of which none is learnt
    prompts = LearntPrompts(tower, [[0], [0], [0], [0]], [[text] for text in TEXTS])
    found = prompts(torch.zeros(4, 1, 3, tower.width))
    torch.testing.assert_close(found[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_what_lies_behind_the_end_does_not_matter(clip):
    _, tower = clip
    x = torch.randn(3, 7, tower.width)
    end = torch.tensor([2, 6, 4])
    changed = x.clone()
    for row, last in zip(changed, end, strict=True):
        row[last + 1 :] = 100
    assert torch.equal(tower(x, end), tower(changed, end))
    changed[0, 2] += 1
    assert not torch.equal(tower(x, end)[0], tower(changed, end)[0])


def test_derivatives_are_those_of_open_clip_and_its_weights_get_none(clip):
    model, tower = clip
    tokens = open_clip.get_tokenizer(tower.name)(TEXTS[:2])
    model.requires_grad_(requires_grad=True)

    # open_clip's own, from the output of its embedding
    kept = []
    handle = model.token_embedding.register_forward_hook(
        lambda module, inputs, output: kept.append(output.retain_grad() or output)
    )
    upstream = torch.randn(2, tower.dim)
    (model.encode_text(tokens) * upstream).sum().backward()
    handle.remove()
    model.zero_grad()

    x = model.token_embedding(tokens).detach().requires_grad_()
    (tower(x, tokens.argmax(1)) * upstream).sum().backward()
    torch.testing.assert_close(x.grad, kept[0].grad, atol=1e-4, rtol=1e-4)
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(weight.requires_grad for weight in tower._weights.values())


def test_learners_side_by_side_have_the_vectors_and_derivatives_of_each_alone(clip):
    _, tower = clip
    prompts = LearntPrompts(tower, [[2, 1]] * 3, [["", "a"]] * 3)
    tokens = torch.randn(4, 3, 2, 2, tower.width)
    upstream = torch.randn(4, 3, 2, tower.dim)
    found, pull_back = vjp(vmap(prompts), tokens)
    (gradient,) = pull_back(upstream)
    for p in range(4):
        own = tokens[p].clone().requires_grad_()
        expected = prompts(own)
        expected.backward(upstream[p])
        torch.testing.assert_close(found[p], expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(gradient[p], own.grad, atol=1e-4, rtol=1e-4)


def test_a_prompt_is_start_learnt_tokens_words_and_end(clip):
    model, tower = clip
    words = tower.read("a face")
    texts = ["a face brows", "a face", "brows"]
    prompts = LearntPrompts(tower, [[2], [2], [0]], [["brows"], [""], ["brows"]])
    tokens = torch.zeros(3, 1, 3, tower.width)
    tokens[:2, 0, :2] = words
    found = prompts(tokens)[:, 0]
    torch.testing.assert_close(found, reference(model, tower, texts), atol=1e-5, rtol=1e-5)
    # Only tokens that are used have a derivative.
    slope = jacrev(prompts)(tokens)
    used = slope.abs().sum((0, 1, 2, 4, 6)) > 0
    assert used.tolist() == [[True, True, False], [True, True, False], [False] * 3]


def test_words_that_are_tokens_are_nearest_to_themselves():
    config = EncoderConfig(model="raffect-faces", weights="embedded")
    tower = make_tower(build_model(resolve(config)), config.model)
    found = tower.nearest(tower.read("brows raised"), 2)
    assert [row[0][0] for row in found] == ["brows", "raised"]
    assert [row[0][1] for row in found] == pytest.approx([1, 1], abs=1e-6)
    # A word that the weights never saw has no vector, and is near to nothing.
    (row,) = tower.nearest(torch.randn(1, tower.width), 49_000)
    seen = {word for word, cosine in row if cosine > -2}
    assert "brows" in seen
    assert "happiness" not in seen
    assert not {"<start_of_text>", "<end_of_text>"} & seen


def test_too_many_tokens_are_one_line(clip):
    _, tower = clip
    most = tower.context_length - 2
    LearntPrompts(tower, [[most]], [[""]])
    with pytest.raises(RaffectError) as caught:
        LearntPrompts(tower, [[1], [most]], [["a"], ["lips"]])
    total = most + 3
    assert str(caught.value) == (
        f"prompt of {total} tokens ({most} learnt tokens before 'lips'), {tower.name} reads "
        f"{most + 2}; take fewer --head.tokens or shorter words"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"no_causal_mask": True},
        {"embed_cls": True},
        {"pool_type": "last"},
        {"ls_init_value": 0.1},
        {"qk_norm": True},
        {"proj_type": "none"},
    ],
    ids=str,
)
def test_towers_that_compute_something_else_are_refused(options):
    tower = TextTransformer(8, 49_408, 8, 2, 1, output_dim=8, **options)
    tokenizer = SimpleTokenizer(context_length=8)
    with pytest.raises(RaffectError, match=r"^other: learnt prompts need a text tower like CLIP's"):
        TextTower(tower, tokenizer, "other", CPU)
    plain = TextTransformer(8, 49_408, 8, 2, 1, output_dim=8)
    assert TextTower(plain, tokenizer, "plain", CPU).dim == 8
