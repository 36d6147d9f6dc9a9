"""Regions and sharing, held against attention worked out by the library's own processor on the same places and words:
what must not be seen is not seen, to the bit, in every layer, in both halves of guidance, and whatever the batch."""

import pytest
import torch

from alignment_video.backbone import Backbone, Text, _diffusers, write_untrained
from alignment_video.core import Refused
from alignment_video.regions import (
    Recording,
    Region,
    log_weights,
    matched,
    on_grid,
    record_guest,
    region_guest,
    sharing_guest,
    sides,
)
from alignment_video.sampling import (
    Branch,
    Guest,
    Guidance,
    Schedule,
    Start,
    Step,
    denoise,
    invert,
    other_attention,
)

pytestmark = pytest.mark.usefixtures("one_thread")
ROUNDING = 1e-5
FEW = Schedule(3, 1.0)


@pytest.fixture(scope="module")
def sd15(tmp_path_factory):
    return Backbone.from_pretrained(write_untrained(tmp_path_factory.mktemp("sd15"), "sd15"), device="cpu")


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory):
    return Backbone.from_pretrained(write_untrained(tmp_path_factory.mktemp("sdxl"), "sdxl", narrower=16), device="cpu")


@pytest.fixture(scope="module")
def mini():
    return Backbone.from_pretrained("mini", device="cpu", dtype="float32")


@pytest.fixture(params=["sd15", "mini"])
def backbone(request):
    return request.getfixturevalue(request.param)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def words(backbone, tokens=77, rows=1, seed=0):
    return Text(random(rows, tokens, backbone.unet.config.cross_attention_dim, seed=seed))


def side(backbone):
    return 64 // backbone.factor


def half(backbone):
    """A mask of latents: the left half."""
    mask = torch.zeros(1, 1, side(backbone), side(backbone))
    mask[..., : side(backbone) // 2] = 1
    return mask


def latents_of(backbone, rows=1, seed=0):
    return random(rows, backbone.latent_channels, side(backbone), side(backbone), seed=seed)


def layers(backbone, self_attention):
    """One attention layer of each size, by name."""
    ends = "attn1" if self_attention else "attn2"
    found = {name: layer for name, layer in backbone.unet.named_modules() if name.endswith(ends)}
    return {name: found[name] for name in list(found)[:: 2 if len(found) > 6 else 1]}


def places_of(backbone, name):
    """How many places a layer has: halved as often as the blocks before it do."""
    seen = {}
    layer = dict(backbone.unet.named_modules())[name]
    hook = layer.register_forward_hook(lambda module, given, found: seen.update(places=found.shape[1]))
    backbone.predict(latents_of(backbone), 500, words(backbone))
    hook.remove()
    return seen["places"]


def step_of(names=("negative", "text"), items=1, backbone=None):
    text = words(backbone) if backbone else Text(torch.zeros(1, 77, 8))
    branches = tuple(Branch(name, text, False, 1 / len(names)) for name in names)
    return Step(0, 1, torch.tensor(500), branches, range(items))


class Inside:
    """A run of which single layers can be asked: the guests are in the U-Net, and know step and size."""

    def __init__(self, backbone, *guests, names=("negative", "text"), items=1, size=None):
        self.backbone, self.guests, self.step = backbone, guests, step_of(names, items, backbone)
        self.size = size or (side(backbone), side(backbone))
        self.open = []

    def __enter__(self):
        for guest in self.guests:
            block = other_attention(self.backbone.unet, guest.attention)
            block.__enter__()
            self.open.append(block)
        for guest in self.guests:
            guest.before(self.step)
        count = len(self.step.branches) * len(self.step.rows)
        self.backbone.predict(random(count, 4, *self.size), 500, words(self.backbone))
        return self

    def __exit__(self, *error):
        for block in reversed(self.open):
            block.__exit__(None, None, None)

    def __call__(self, layer, hidden, text=None):
        with torch.no_grad():
            return layer(hidden, encoder_hidden_states=text)


def plain(layer, hidden, text=None):
    """What the library's processor makes of it."""
    with torch.no_grad():
        return _diffusers().models.attention_processor.AttnProcessor2_0()(layer, hidden, text)


def inside_of(backbone, places, mask=None):
    grid = int(places**0.5)
    return on_grid(half(backbone) if mask is None else mask, (grid, grid))[0] > 0


# ---- words


def test_each_place_sees_its_own_words(backbone):
    own, base = words(backbone, seed=1), words(backbone, seed=2)
    for name, layer in layers(backbone, False).items():
        places = places_of(backbone, name)
        if places == 1:
            continue
        inside = inside_of(backbone, places)
        hidden = random(2, places, layer.query_dim, seed=3)
        with Inside(backbone, region_guest(backbone, Region(half(backbone), own))) as run:
            found = run(layer, hidden, base.rows(2).hidden)
        assert torch.allclose(found[:1], plain(layer, hidden[:1], base.hidden), atol=ROUNDING)  # the negative half
        assert torch.allclose(found[1, inside], plain(layer, hidden[1:], own.hidden)[0, inside], atol=ROUNDING)
        assert torch.allclose(found[1, ~inside], plain(layer, hidden[1:], base.hidden)[0, ~inside], atol=ROUNDING)
        assert (plain(layer, hidden[1:], own.hidden) - plain(layer, hidden[1:], base.hidden)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_other_words_change_nothing_to_the_bit(sd15, kind):
    name, layer = next(iter(layers(sd15, False).items()))
    places = places_of(sd15, name)
    inside, hidden = inside_of(sd15, places), random(2, places, layer.query_dim, seed=3)
    found = []
    for seed in (1, 2):
        guest = region_guest(sd15, Region(half(sd15), words(sd15, seed=5)), outside=words(sd15, seed=seed))
        with Inside(sd15, guest) as run:
            layer.to(kind)
            found.append(run(layer, hidden.to(kind), words(sd15).rows(2).hidden.to(kind)))
            layer.float()
    assert all(each.dtype == kind and bool(each.isfinite().all()) for each in found)
    assert torch.equal(found[0][1, inside], found[1][1, inside])
    assert not torch.equal(found[0][1, ~inside], found[1][1, ~inside])
    assert torch.equal(found[0][0], found[1][0])  # the negative half knows nothing of it


def test_weights_are_counts(mini):
    """A region of weight three is three regions; a soft mask is a smaller weight."""
    name, layer = next(iter(layers(mini, False).items()))
    hidden = random(1, places_of(mini, name), layer.query_dim, seed=3)
    one, other, base = (words(mini, seed=seed) for seed in (1, 2, 3))

    def found(*regions):
        with Inside(mini, region_guest(mini, regions), names=("text",)) as run:
            return run(layer, hidden, base.hidden)

    left = half(mini)
    heavy = found(Region(left, one, 3.0), Region(left, other))
    thrice = found(*[Region(left, one)] * 3, Region(left, other))
    soft = found(Region(left, one), Region(left / 3, other))
    assert torch.allclose(heavy, thrice, atol=ROUNDING)
    inside = inside_of(mini, hidden.shape[1])
    assert torch.allclose(heavy[:, inside], soft[:, inside], atol=ROUNDING)
    assert not torch.allclose(heavy, found(Region(left, one), Region(left, other)), atol=1e-3)


@pytest.mark.parametrize("tokens", [5, 77, 154])
def test_words_of_any_length(mini, tokens):
    name, layer = next(iter(layers(mini, False).items()))
    hidden, own = random(1, places_of(mini, name), layer.query_dim, seed=3), words(mini, tokens, seed=1)
    with Inside(mini, region_guest(mini, Region(half(mini), own)), names=("text",)) as run:
        found = run(layer, hidden, words(mini).hidden)
    inside = inside_of(mini, hidden.shape[1])
    assert torch.allclose(found[0, inside], plain(layer, hidden, own.hidden)[0, inside], atol=ROUNDING)


def test_a_negative_of_its_own(mini):
    name, layer = next(iter(layers(mini, False).items()))
    hidden = random(2, places_of(mini, name), layer.query_dim, seed=3)
    own, less, base = (words(mini, seed=seed) for seed in (1, 2, 3))
    with Inside(mini, region_guest(mini, Region(half(mini), own, negative=less))) as run:
        found = run(layer, hidden, base.rows(2).hidden)
    inside = inside_of(mini, hidden.shape[1])
    assert torch.allclose(found[0, inside], plain(layer, hidden[:1], less.hidden)[0, inside], atol=ROUNDING)
    assert torch.allclose(found[0, ~inside], plain(layer, hidden[:1], base.hidden)[0, ~inside], atol=ROUNDING)
    assert torch.allclose(found[1, inside], plain(layer, hidden[1:], own.hidden)[0, inside], atol=ROUNDING)


def test_rows_of_their_own(mini):
    """Masks and words one an item, in both halves: item by item the same as alone."""
    name, layer = next(iter(layers(mini, False).items()))
    places = places_of(mini, name)
    masks = torch.cat([half(mini), 1 - half(mini), torch.zeros_like(half(mini))])  # the third has nothing inside
    own, hidden, base = words(mini, rows=3, seed=1), random(6, places, layer.query_dim, seed=3), words(mini, seed=2)
    with Inside(mini, region_guest(mini, Region(masks, own)), items=3) as run:
        found = run(layer, hidden, base.rows(6).hidden)
    for i in range(3):
        inside = inside_of(mini, places, masks[i : i + 1])
        expected = torch.where(
            inside[:, None],
            plain(layer, hidden[3 + i : 4 + i], own.hidden[i : i + 1])[0],
            plain(layer, hidden[3 + i : 4 + i], base.hidden)[0],
        )
        assert torch.allclose(found[3 + i], expected, atol=ROUNDING)
    assert torch.allclose(found[:3], plain(layer, hidden[:3], base.rows(3).hidden), atol=ROUNDING)


# ---- places


def test_sides_stay_apart_to_the_bit(backbone):
    for name, layer in layers(backbone, True).items():
        places = places_of(backbone, name)
        if places == 1:
            continue
        inside = inside_of(backbone, places)
        hidden = random(2, places, layer.query_dim, seed=3)
        other = torch.where(inside[:, None], hidden, random(2, places, layer.query_dim, seed=4))
        with Inside(backbone, region_guest(backbone, Region(half(backbone), words(backbone)))) as run:
            found, changed = run(layer, hidden), run(layer, other)
        assert torch.equal(found[:, inside], changed[:, inside])
        assert not torch.allclose(found[:, ~inside], changed[:, ~inside])
        alone = plain(layer, hidden[:, inside])
        assert torch.allclose(found[:, inside], alone, atol=ROUNDING)


def test_leak(mini):
    name, layer = next(iter(layers(mini, True).items()))
    places = places_of(mini, name)
    hidden = random(2, places, layer.query_dim, seed=3)
    found = {}
    for leak in (0.0, 0.01, 0.5, 0.999999, 1.0):
        with Inside(mini, region_guest(mini, Region(half(mini), words(mini)), leak=leak)) as run:
            found[leak] = run(layer, hidden)
    untouched = plain(layer, hidden)
    away = [float((each - untouched).abs().mean()) for each in found.values()]
    assert away == sorted(away, reverse=True) and away[0] > 100 * away[-2] and torch.equal(found[1.0], untouched)
    inside = inside_of(mini, places)
    query, key, value = (
        make(hidden).unflatten(2, (layer.heads, -1)).transpose(1, 2) for make in (layer.to_q, layer.to_k, layer.to_v)
    )
    raw = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).exp()
    raw = torch.where(inside[:, None] == inside[None], raw, 0.5 * raw)
    by_hand = layer.to_out[0]((raw / raw.sum(3, keepdim=True) @ value).transpose(1, 2).flatten(2))
    assert torch.allclose(found[0.5], by_hand, atol=ROUNDING)


def test_equal_words_and_full_leak_are_the_plain_unet(backbone):
    latents, text = latents_of(backbone, 2), words(backbone, seed=1)
    expected = backbone.predict(latents, 500, text)
    for given in (Region(half(backbone), text), [Region(half(backbone), text, 2.0), Region(half(backbone) / 2, text)]):
        guest = region_guest(backbone, given, leak=1.0)
        with other_attention(backbone.unet, guest.attention):
            guest.before(step_of(("negative", "text"), backbone=backbone))
            found = backbone.predict(latents, 500, text)
        assert torch.allclose(found, expected, atol=1e-4) and not torch.equal(found, expected)  # it went another way


def test_sdxl(sdxl):
    latents = random(2, 4, 8, 8)
    text = sdxl.encode_text("a mug")
    guest = region_guest(sdxl, Region(torch.eye(8), text), leak=1.0)
    with other_attention(sdxl.unet, guest.attention):
        guest.before(Step(0, 1, torch.tensor(500), (Branch("text", text, False, 1.0),), range(2)))
        found = sdxl.predict(latents, 500, text)
    assert torch.allclose(found, sdxl.predict(latents, 500, text), atol=1e-4)


# ---- grids


def test_max_pool_loses_nothing_and_no_side_is_lost():
    thin = torch.zeros(1, 1, 64, 64)
    thin[0, 0, 33, 40] = 1
    dots = torch.ones(1, 1, 64, 64)
    dots[0, 0, 5, 5] = 0
    for grid in (32, 16, 8, 4, 2, 1):
        for mask in (thin, dots):
            found = sides([mask], (grid, grid))
            assert found.shape == (1, 2, grid**2) and bool((found.sum(1) == 1).all())
            assert bool((found.amax(2) > 0).all())  # inside and outside both have a place, down to a single one
    assert sides([thin], (1, 1)).flatten().tolist() == [0.5, 0.5]
    assert sides([torch.ones(1, 1, 4, 4)], (2, 2))[:, 1].sum() == 0  # nothing is outside, so nothing is kept
    assert on_grid(torch.zeros(1, 1, 5, 7), (3, 4)).shape == (1, 12)  # odd sizes, as the U-Net halves them
    with pytest.raises(Refused, match="mask of 8×4 does not become 4×4"):
        on_grid(torch.zeros(1, 1, 8, 4), (4, 4))


def test_logarithms_of_sides():
    two = sides([torch.tensor([[1.0, 0.0]])[None, None]], (1, 2))
    assert log_weights(two, two).tolist() == [[[0.0, -1e4], [-1e4, 0.0]]]
    assert log_weights(two, two, 1.0).tolist() == [[[0.0, 0.0], [0.0, 0.0]]]


def test_one_latent_pixel_inside_and_out(sd15):
    """At 64 pixels the middle of a Stable Diffusion has a single place, which is on both sides."""
    for mask in (torch.zeros(8, 8), torch.ones(8, 8)):
        mask[3, 3] = 1 - mask[3, 3]
        found = denoise(
            sd15, Start(latents_of(sd15), latents_of(sd15, seed=1)), words(sd15), words(sd15, seed=4), schedule=FEW,
            guests=[region_guest(sd15, Region(mask, words(sd15, seed=2)))],
        )  # fmt: skip
        assert bool(found.isfinite().all())


# ---- sharing


def test_statistics_are_the_references_side_by_side():
    own, reference = random(2, 3, 36, 5, seed=1) * 4 + 1, random(1, 3, 36, 5, seed=2) * 0.3 - 7
    left, right = torch.zeros(1, 1, 6, 6), torch.zeros(1, 1, 6, 6)
    left[..., :2], right[..., 3:] = 1, 1
    here, there = sides([left], (6, 6)), sides([right], (6, 6))
    found = matched(own, reference, here, there)
    for i in (0, 1):
        mine, its = here[0, i] > 0, there[0, i] > 0
        for row in found:
            assert torch.allclose(row[:, mine].mean(1), reference[0][:, its].mean(1), atol=1e-3)
            assert torch.allclose(row[:, mine].std(1, False), reference[0][:, its].std(1, False), rtol=1e-2)
    assert torch.allclose(matched(own[:1], own[:1], here, here), own[:1], atol=1e-4)
    twice = matched(own, torch.cat([reference] * 2), here, there)
    assert torch.allclose(twice, found, atol=1e-4)


def test_statistics_of_empty_and_tiny_sides():
    own, reference = random(1, 2, 16, 3, seed=1), random(1, 2, 16, 3, seed=2) + 5
    empty, dot, all_of_it = (torch.zeros(1, 1, 4, 4) for _ in range(3))
    dot[0, 0, 0, 0], all_of_it[:] = 1, 1
    none, one, whole = (sides([mask], (4, 4)) for mask in (empty, dot, all_of_it))
    assert torch.equal(matched(own, reference, whole, none), own)  # there is no such side in the reference
    found = matched(own, reference, one, one)
    assert torch.allclose(found[:, :, 0], reference[:, :, 0], atol=1e-5)  # a mean, and no spread
    for mine in (none, one, whole):
        for its in (none, one, whole):
            assert bool(matched(own, reference, mine, its).isfinite().all())
    assert matched(own.half(), reference.half(), one, whole).dtype == torch.float16


def test_sharing_by_hand(mini):
    """Places inside see their own inside and the reference's: as the plain processor does, shown just these."""
    for name, layer in layers(mini, True).items():
        places = places_of(mini, name)
        masks = torch.cat([half(mini), half(mini).transpose(2, 3)])
        here, there = (inside_of(mini, places, masks[i : i + 1]) for i in (0, 1))
        hidden = random(4, places, layer.query_dim, seed=3)  # two items in two branches; item 1 is the reference
        with Inside(
            mini, region_guest(mini, Region(masks, words(mini))), sharing_guest(1, adain=False), items=2
        ) as run:
            found = run(layer, hidden)
        for mine, its in ((here, there), (~here, ~there)):
            for branch in (0, 2):
                seen = torch.cat([hidden[branch, mine], hidden[branch + 1, its]])[None]
                expected = plain(layer, hidden[branch : branch + 1], seen)[0, mine]
                assert torch.allclose(found[branch, mine], expected, atol=ROUNDING)
                own = plain(layer, hidden[branch + 1 : branch + 2], hidden[branch + 1, its][None])[0, its]
                assert torch.allclose(found[branch + 1, its], own, atol=ROUNDING)  # the reference sees itself alone


def run_of(backbone, latents, *guests, schedule=FEW, **how):
    texts = words(backbone, seed=8), words(backbone, seed=9)
    start = Start(latents, latents_of(backbone, seed=7))
    return denoise(backbone, start, *texts, guests=guests, schedule=schedule, **how)


def regions_of(backbone, masks, **how):
    return region_guest(backbone, Region(masks, words(backbone, seed=5)), **how)


@pytest.mark.parametrize("adain", [True, False])
@pytest.mark.parametrize("divided", [True, False])
def test_a_recording_equals_the_batch(mini, adain, divided):
    masks = torch.cat([half(mini), half(mini).transpose(2, 3), 1 - half(mini)])
    latents = latents_of(mini, 3)

    def guests(rows, *more):
        return [*([regions_of(mini, masks[rows])] if divided else []), *more]

    alone = run_of(mini, latents)
    in_batch = run_of(mini, latents, *guests(slice(0, 3), sharing_guest(0, adain=adain)))
    recording = Recording()
    reference = run_of(mini, latents[:1], *guests(slice(0, 1), record_guest(recording)))
    others = run_of(mini, latents[1:], *guests(slice(1, 3), sharing_guest(recording, adain=adain)))
    assert torch.allclose(in_batch, torch.cat([reference, others]), atol=1e-4)
    assert float((in_batch[1:] - alone[1:]).abs().mean()) > 0.01 and recording.size > 0
    one_by_one = run_of(mini, latents[1:], *guests(slice(1, 3), sharing_guest(recording, adain=adain)), batch_size=1)
    assert torch.allclose(others, one_by_one, atol=1e-4)
    if not divided:
        assert torch.equal(reference, run_of(mini, latents[:1]))  # being listened to changes nothing


def test_several_references(mini):
    latents = latents_of(mini, 4)
    together = run_of(mini, latents, sharing_guest([0, 3]))
    recording = Recording("cpu")
    run_of(mini, latents[[0, 3]], record_guest(recording), batch_size=1)
    apart = run_of(mini, latents[1:3], sharing_guest(recording))
    assert torch.allclose(together[1:3], apart, atol=1e-4)
    same = latents[[0, 0, 1]]
    twice, once = run_of(mini, same, sharing_guest([0, 1])), run_of(mini, latents[:2], sharing_guest(0))
    assert torch.allclose(twice[2:], once[1:], atol=1e-4)


def test_scale_and_when(mini):
    latents = latents_of(mini, 2)
    alone = run_of(mini, latents)
    away = [
        float((run_of(mini, latents, sharing_guest(0, adain=False, scale=scale)) - alone)[1].abs().mean())
        for scale in (0, 0.1, 1.0, 10)
    ]
    assert away[0] < 1e-5 and away == sorted(away) and away[1] > 1e-3
    late, whole = (run_of(mini, latents, sharing_guest(0, when=when)) for when in ((0.6, 1.0), (0.0, 1.0)))
    assert 1e-5 < float((late - alone)[1].abs().mean()) < float((whole - alone)[1].abs().mean())
    with pytest.raises(Refused, match="covers none of 3 steps"):
        run_of(mini, latents, sharing_guest(0, when=(0.4, 0.5)))


def test_inside_sees_the_references_inside_only(mini):
    """In one layer, to the bit; with all of the reference's leak, not so."""
    name, layer = next(iter(layers(mini, True).items()))
    places = places_of(mini, name)
    inside, hidden = inside_of(mini, places), random(2, places, layer.query_dim, seed=3)
    other = hidden.clone()
    other[0, ~inside] = random(places, layer.query_dim, seed=4)[~inside]
    for leak, same in ((0.0, True), (0.5, False)):
        guests = regions_of(mini, half(mini), leak=0.0), sharing_guest(0, leak=leak)
        with Inside(mini, *guests, names=("text",), items=2) as run:
            found, changed = run(layer, hidden), run(layer, other)
        assert torch.equal(found[1, inside], changed[1, inside]) == same
        assert not torch.equal(found[1, ~inside], changed[1, ~inside])


def test_a_reference_that_lacks_a_side(mini):
    """Items keep to themselves where the reference has nothing of their side."""
    latents = latents_of(mini, 2)
    masks = torch.cat([torch.zeros_like(half(mini)), half(mini)])
    found = run_of(mini, latents, regions_of(mini, masks), sharing_guest(0))
    assert bool(found.isfinite().all())
    name, layer = next(iter(layers(mini, True).items()))
    places = places_of(mini, name)
    hidden, inside = random(2, places, layer.query_dim, seed=3), inside_of(mini, places)
    with Inside(mini, regions_of(mini, masks), sharing_guest(0), names=("text",), items=2) as run:
        found = run(layer, hidden)
    assert torch.allclose(found[1, inside], plain(layer, hidden[1:, inside])[0], atol=ROUNDING)


def test_masks_for_a_recording_without_regions(mini):
    latents, recording, other = latents_of(mini, 2), Recording(), Recording()
    apart = {"leak": 1.0, "cross": False}
    run_of(mini, latents[:1], record_guest(recording))
    run_of(mini, latents[:1], record_guest(other), regions_of(mini, half(mini), **apart))
    guests = regions_of(mini, half(mini), **apart), sharing_guest(recording, masks=[half(mini)])
    told = run_of(mini, latents[1:], *guests)
    assert torch.equal(told, run_of(mini, latents[1:], guests[0], sharing_guest(other)))
    with pytest.raises(Refused, match="recorded without regions"):
        run_of(mini, latents[1:], guests[0], sharing_guest(recording))
    with pytest.raises(Refused, match="2 masks for 1 regions"):
        run_of(mini, latents[1:], guests[0], sharing_guest(recording, masks=[half(mini)] * 2))
    with pytest.raises(Refused, match="masks of 3 rows for 1 references"):
        run_of(mini, latents[1:], guests[0], sharing_guest(recording, masks=[half(mini).expand(3, -1, -1, -1)]))


# ---- the loop


def test_order_of_guests_does_not_matter(mini):
    latents, masks = latents_of(mini, 2), half(mini)
    makers = (lambda: regions_of(mini, masks), lambda: sharing_guest(0), lambda: record_guest(Recording()))
    expected = run_of(mini, latents, *(make() for make in makers))
    assert torch.equal(expected, run_of(mini, latents, *(make() for make in reversed(makers))))
    again = [make() for make in makers]
    for size in (2, 2):  # the same guests may work twice
        assert torch.equal(expected, run_of(mini, latents, *again, batch_size=size))


def test_batches_do_not_matter(mini):
    masks = torch.cat([half(mini), half(mini).transpose(2, 3), 1 - half(mini)])
    text = words(mini, rows=3, seed=5)
    guest = region_guest(mini, Region(masks, text), words(mini, rows=3, seed=6))
    found = [run_of(mini, latents_of(mini, 3), guest, batch_size=size) for size in (3, 2, 1)]
    for each in found[1:]:
        assert torch.allclose(each, found[0], atol=1e-4)
    pixels = torch.nn.functional.interpolate(masks, scale_factor=mini.factor)
    of_pixels = region_guest(mini, Region(pixels, text), words(mini, rows=3, seed=6))
    assert torch.equal(run_of(mini, latents_of(mini, 3), of_pixels, batch_size=3), found[0])


def test_inversion_leads_back(mini):
    """Inverted and denoised with the same regions, a frame comes back; the recording serves both ways."""
    from alignment_video.backbone import as_tensor
    from alignment_video.world import still

    frame = mini.encode(as_tensor(still(36_400_001, (64, 64), "mug", 0.7).image))
    recording, text = Recording(), mini.encode_text("a mug")
    guest, how = regions_of(mini, half(mini)), {"schedule": Schedule(10, 0.5)}
    path = invert(mini, frame, text, guests=[guest, record_guest(recording)], **how)
    again = denoise(mini, Start(path=path), text, guidance=Guidance(1.0), guests=[guest], **how)
    assert float((again - frame).abs().mean()) < 0.02
    shared = denoise(
        mini, Start(path=path), text, guidance=Guidance(1.0), guests=[guest, sharing_guest(recording)], **how
    )
    assert bool(shared.isfinite().all())


def test_the_rest_is_kept_to_the_bit(mini):
    latents = latents_of(mini, 2)
    found = run_of(mini, latents, regions_of(mini, half(mini)), sharing_guest(0), edit=half(mini))
    assert torch.equal(found[..., side(mini) // 2 :], latents[..., side(mini) // 2 :])


@pytest.mark.parametrize("when", ["before", "after"])
def test_layers_are_put_back(mini, when):
    """Also if the loop breaks, before the first call of the U-Net or behind it; and nothing else stays in the U-Net."""

    def stop(step, latents=None):
        raise ZeroDivisionError

    processors, expected = dict(mini.unet.attn_processors), mini.predict(latents_of(mini), 500, words(mini))
    guests = regions_of(mini, half(mini)), record_guest(Recording()), Guest(**{when: stop})
    with pytest.raises(ZeroDivisionError):
        run_of(mini, latents_of(mini), *guests)
    assert dict(mini.unet.attn_processors) == processors
    assert torch.equal(expected, mini.predict(latents_of(mini), 500, words(mini)))
    assert not mini.unet._forward_pre_hooks


def test_sixteen_bits(mini):
    small = Backbone.from_pretrained("mini", device="cpu", dtype="bfloat16")
    latents = latents_of(mini, 2)
    one, other = (
        run_of(each, latents, region_guest(each, Region(half(mini), words(mini, seed=5))), sharing_guest(0))
        for each in (mini, small)
    )
    alone = run_of(mini, latents)
    assert bool(other.isfinite().all())
    assert float((one - other).abs().mean()) < 0.3 * float((one - alone).abs().mean())


def test_pictures_that_are_not_square(mini):
    """A layer is told its places, and not that they are 12×20: the sides must lie where the picture has them."""
    mask = torch.zeros(1, 1, 12, 20)
    mask[..., 3:9, 4:14] = 1
    for self_attention in (True, False):
        layer = next(iter(layers(mini, self_attention).values()))
        inside, hidden = mask.flatten() > 0, random(2, 240, layer.query_dim, seed=3)
        guest = region_guest(mini, Region(mask, words(mini, seed=1)))
        with Inside(mini, guest, size=(12, 20)) as run:
            found = run(layer, hidden, None if self_attention else words(mini).rows(2).hidden)
        for part in (inside, ~inside):
            seen = hidden[1:, part] if self_attention else words(mini, seed=int(part is inside)).hidden
            expected = plain(layer, hidden[1:], seen)[0, part]
            assert torch.allclose(found[1, part], expected, atol=ROUNDING)
    pixels = torch.nn.functional.interpolate(mask, scale_factor=4)
    odd = torch.nn.functional.interpolate(pixels, size=(44, 84))
    noise = random(1, 4, 11, 21)
    found = denoise(mini, Start(noise, noise), words(mini), words(mini), schedule=FEW, guests=[regions_of(mini, odd)])
    assert bool(found.isfinite().all())


# ---- bad input


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf"), "much"])
def test_weights(mini, weight):
    with pytest.raises(Refused, match="use a number above 0"):
        Region(half(mini), words(mini), weight)


def test_regions_that_are_refused(mini):
    text, left = words(mini), half(mini)
    with pytest.raises(Refused, match="its mask is empty"):
        Region(torch.zeros(8, 8), text)
    with pytest.raises(Refused, match="values from 0"):
        Region(left * float("nan"), text)
    with pytest.raises(Refused, match="encode it first"):
        Region(left, "a mug")
    with pytest.raises(Refused, match="on every pixel; give its text to the loop"):
        region_guest(mini, Region(torch.ones(16, 16), text))
    with pytest.raises(Refused, match="nothing would see the outside text"):
        region_guest(mini, [Region(left, text), Region(1 - left, text)], outside=text)
    region_guest(mini, [Region(left, text), Region(1 - left, text)])
    with pytest.raises(Refused, match="there are none"):
        region_guest(mini, [])
    with pytest.raises(Refused, match="write Region"):
        region_guest(mini, [left])
    with pytest.raises(Refused, match="rows have width 5"):
        region_guest(mini, Region(left, Text(torch.zeros(1, 77, 5))))
    with pytest.raises(Refused, match="rows have width 5"):
        region_guest(mini, Region(left, text), outside=Text(torch.zeros(1, 77, 5)))
    with pytest.raises(Refused, match="region 1: mask of"):
        region_guest(mini, [Region(left, text), Region(torch.eye(8), text)])
    for leak in (-0.1, 1.1, float("nan"), "no"):
        with pytest.raises(Refused, match="leak"):
            region_guest(mini, Region(left, text), leak=leak)


def test_masks_of_another_picture(mini):
    wide = torch.zeros(8, 32)
    wide[:, :8] = 1
    with pytest.raises(Refused, match="masks of 8×32 for a picture of 64×64"):  # as many places, of another form
        run_of(mini, latents_of(mini), regions_of(mini, wide))
    with pytest.raises(Refused, match="region 0: mask of 2 rows, and there are 3 items"):
        run_of(mini, latents_of(mini, 3), regions_of(mini, half(mini).expand(2, -1, -1, -1)))


def test_sharing_that_is_refused(mini):
    latents, recording = latents_of(mini, 3), Recording()
    for reference in (-1, [], [0, 0], "0", True, 0.5):
        with pytest.raises(Refused, match="numbers of items from 0 on"):
            sharing_guest(reference)
    for scale in (-1, float("nan"), float("inf")):
        with pytest.raises(Refused, match="scale"):
            sharing_guest(0, scale=scale)
    with pytest.raises(Refused, match="two shares of the steps"):
        sharing_guest(0, when=(20, 80))
    with pytest.raises(Refused, match="leave them out"):
        sharing_guest(0, masks=[half(mini)])
    with pytest.raises(Refused, match="reference 0 is not in the batch of items 2 to 2; raise batch_size"):
        run_of(mini, latents, sharing_guest(0), batch_size=2)
    with pytest.raises(Refused, match="nothing is recorded"):
        run_of(mini, latents, sharing_guest(recording))
    run_of(mini, latents[:1], record_guest(recording))
    with pytest.raises(Refused, match=r"not at .*; use its schedule"):
        run_of(mini, latents, sharing_guest(recording), schedule=Schedule(4, 1.0))
    one, plainly = Start(latents[:1], latents[:1]), {"guidance": Guidance(1.0), "schedule": FEW}
    denoise(mini, one, words(mini), guests=[record_guest(recording)], **plainly)
    with pytest.raises(Refused, match="no branch 'negative', only text"):
        run_of(mini, latents, sharing_guest(recording))
    run_of(mini, latents[:1], record_guest(recording))
    with pytest.raises(Refused, match="record it at the same size"):
        small = Start(random(1, 4, 8, 8), random(1, 4, 8, 8))
        denoise(mini, small, words(mini), words(mini), schedule=FEW, guests=[sharing_guest(recording)])
    with pytest.raises(Refused, match="cannot be made and looked at in one run"):
        run_of(mini, latents, sharing_guest(recording), record_guest(recording))
    with pytest.raises(Refused, match="two of them bring sharing"):
        run_of(mini, latents, sharing_guest(0), sharing_guest(1))


def test_layers_of_others_are_refused(mini, sd15):
    class Strange:
        def __call__(self, *given, **more):
            raise AssertionError

    with pytest.raises(Refused, match="has a Strange"):
        run_of(mini, latents_of(mini), Guest(attention=lambda name, usual: Strange()), sharing_guest(0))
    with pytest.raises(Refused, match="another U-Net runs"):
        run_of(mini, latents_of(mini), region_guest(sd15, Region(half(mini), words(sd15))))
    guest = sharing_guest(0)
    with other_attention(mini.unet, guest.attention):
        with pytest.raises(Refused, match="no step was told"):
            mini.predict(latents_of(mini), 500, words(mini))
        guest.before(step_of(items=1, backbone=mini))
        with pytest.raises(Refused, match="1 samples, and the loop told of 2 branches of 1 items"):
            mini.predict(latents_of(mini), 500, words(mini))
