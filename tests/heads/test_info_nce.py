"""InfoNCE by other code, and which texts count as equal."""

import pytest
import torch
from open_clip.loss import ClipLoss
from torch.nn import functional as F

from raffect.heads.head_batch import normalise
from raffect.heads.loss_kind import Terms
from raffect.heads.losses import info_nce_losses, text_shares
from raffect.heads.tail import Tail
from tests.helpers.info_nce import B, draw, info_nce
from tests.helpers.small_heads import (
    CPU,
    DIM,
    make_samples,
    make_vectors,
    prior_of,
)

# Against other code


def test_info_nce_is_cross_entropy_both_ways():
    outputs, text = draw()
    found, own = info_nce(outputs, text), torch.arange(B)
    for head in range(2):
        logits = outputs[head] @ text[head].T
        ways = [F.cross_entropy(way, own, reduction="none") for way in (logits, logits.T)]
        torch.testing.assert_close(found[head], sum(ways) / 2, rtol=0, atol=1e-10)


def test_info_nce_is_open_clips_loss():
    outputs, text = draw(1)
    found = info_nce(outputs, text).mean(1)
    for head in range(2):
        expected = ClipLoss()(outputs[head] / 5, text[head], torch.tensor(5.0).double())
        assert found[head].item() == pytest.approx(expected.item(), abs=1e-6)


def with_copies(seed=2):
    """Texts of which some are equal, and their numbers."""
    outputs, text = draw(seed)
    same = torch.tensor([0, 1, 2, 0, 4, 0, 6, 1, 8, 9, 10, 11]).expand(2, B)
    text = text.gather(1, same[..., None].expand_as(text))
    return outputs.requires_grad_(), text, same


def test_equal_texts_have_the_gradient_of_one_text_a_sample():
    outputs, text, same = with_copies()
    logits = outputs @ text.transpose(1, 2)
    both = logits, logits.transpose(1, 2)
    own = torch.arange(B).expand(2, B)
    hard = sum(F.cross_entropy(way.flatten(0, 1), own.flatten()) for way in both) / 2
    (expected,) = torch.autograd.grad(hard, outputs, retain_graph=True)
    loss = info_nce(outputs, text, same).mean()
    (found,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    # The floor alone differs: the mean log of how often a text occurs, from image to text and back
    often = (same[:, :, None] == same[:, None]).sum(-1)
    assert (hard - loss).item() == pytest.approx(often.log().mean().item())


def test_a_perfect_head_has_no_loss_however_often_a_text_occurs():
    _, text, same = with_copies()
    perfect = 1e4 * text
    assert info_nce(perfect, text, same).abs().max() < 1e-9
    own = torch.arange(B).expand(2, B)
    assert info_nce(perfect, text, own)[:, 0].min() > 1  # log 3: three samples have this text


def test_soft_targets_are_a_softmax_of_cosines_and_hard_ones_their_limit():
    _, text, same = with_copies()
    shares = text_shares(same, text, torch.tensor([0.5, 0.0], dtype=torch.float64))
    expected = (text[0] @ text[0].T / 0.5).softmax(-1)
    torch.testing.assert_close(shares[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(shares[1], text_shares(same, text)[1], rtol=0, atol=0)
    limit = text_shares(same, text, torch.full((2,), 1e-3, dtype=torch.float64))
    torch.testing.assert_close(limit, text_shares(same, text), rtol=0, atol=1e-6)


def test_soft_targets_have_the_gradient_of_soft_cross_entropy():
    outputs, text, same = with_copies()
    shares = text_shares(same, text, torch.full((2,), 0.2, dtype=torch.float64))
    logits = outputs @ text.transpose(1, 2)
    losses, _, _ = info_nce_losses(logits, shares)
    (found,) = torch.autograd.grad(losses.mean(), outputs, retain_graph=True)
    flat, target = logits.flatten(0, 1), shares.flatten(0, 1)
    back = logits.transpose(1, 2).flatten(0, 1)
    soft = (F.cross_entropy(flat, target) + F.cross_entropy(back, target)) / 2
    torch.testing.assert_close(found, torch.autograd.grad(soft, outputs)[0], rtol=0, atol=1e-12)
    assert losses.min() >= 0


def test_samples_that_do_not_count_are_as_if_they_were_not_there():
    outputs, text, same = with_copies()
    valid = torch.ones(2, B, dtype=torch.bool)
    valid[:, [0, 7, 10]] = False
    temperature = torch.tensor([0.0, 0.3], dtype=torch.float64)
    shares = text_shares(same, text, temperature, valid)
    found, _, _ = info_nce_losses(outputs @ text.transpose(1, 2), shares, valid)
    keep = valid[0].nonzero()[:, 0]
    small, few = outputs[:, keep], text[:, keep]
    expected, _, _ = info_nce_losses(
        small @ few.transpose(1, 2), text_shares(same[:, keep], few, temperature)
    )
    torch.testing.assert_close(found[:, keep], expected, rtol=0, atol=1e-12)


def test_a_batch_of_which_no_sample_counts_has_no_loss_and_no_gradient():
    outputs, text, same = with_copies()
    valid = torch.zeros(2, B, dtype=torch.bool)
    shares = text_shares(same, text, torch.full((2,), 0.3, dtype=torch.float64), valid)
    found = info_nce_losses(outputs @ text.transpose(1, 2), shares, valid)
    assert all(part.isfinite().all() for part in found)
    loss, share = Tail([0.5, 1.0], CPU, torch.float64).cvar(found[0], valid)
    assert loss.tolist() == [0, 0]
    assert not share.any()


def test_losses_of_a_kind_are_those_of_its_vectors():
    samples, vectors = make_samples("captions"), make_vectors()
    kind = prior_of("captions", samples).kind
    outputs, target = torch.randn(1, B, DIM, dtype=torch.float64), samples.y[None, :B]
    found = kind.losses(outputs, target, Terms())
    text = normalise(torch.from_numpy(vectors).double(), "l2")[target[..., 0]]
    same = torch.tensor([[k - (k % 4 == 3) for k in target[0, :, 0].tolist()]])
    torch.testing.assert_close(found.values, info_nce(outputs, text, same))
    assert found.mask is None
